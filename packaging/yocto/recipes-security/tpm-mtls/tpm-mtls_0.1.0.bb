SUMMARY = "TLS identities that are born in the TPM"
DESCRIPTION = "Key creation, enrollment and mutual TLS with the signature made inside the chip; a backend and a CA"
SECTION = "security"
CVE_PRODUCT = "tpm-mtls"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# the source distribution of the checkout that has this layer: python -m hatchling build --target sdist --directory
# packaging/yocto/recipes-security/tpm-mtls/files
SRC_URI = "file://tpm_mtls-${PV}.tar.gz"
S = "${UNPACKDIR}/tpm_mtls-${PV}"

inherit features_check python_hatchling systemd useradd

REQUIRED_DISTRO_FEATURES = "systemd"

SYSTEMD_PACKAGES = "${PN} ${PN}-agent ${PN}-backend ${PN}-renew"
# these wait for their configuration: /etc/tpm-mtls/first-boot.env, /etc/tpm-mtls/hardening.toml
SYSTEMD_SERVICE:${PN} = "tpm-mtls-first-boot.service tpm-mtls-provision.service"
SYSTEMD_SERVICE:${PN}-agent = "tpm-mtls-agent.service tpm-mtls-agent.socket"
SYSTEMD_SERVICE:${PN}-backend = "tpm-mtls-pki.service tpm-mtls-server-crl.timer tpm-mtls-server.service"
SYSTEMD_SERVICE:${PN}-renew = "tpm-mtls-renew.timer"
SYSTEMD_AUTO_ENABLE:${PN}-backend = "disable"

USERADD_PACKAGES = "${PN} ${PN}-backend"
GROUPADD_PARAM:${PN} = "--system tss; --system tpm-mtls"
USERADD_PARAM:${PN} = "\
    --system --gid tpm-mtls --groups tss --home-dir ${localstatedir}/lib/tpm-mtls --no-create-home \
    --shell ${base_sbindir}/nologin tpm-mtls \
"
GROUPADD_PARAM:${PN}-backend = "--system tpm-mtls-server; --system tpm-mtls-pki"
USERADD_PARAM:${PN}-backend = "\
    --system --gid tpm-mtls-server --home-dir ${localstatedir}/lib/tpm-mtls-server --no-create-home \
    --shell ${base_sbindir}/nologin tpm-mtls-server; \
    --system --gid tpm-mtls-pki --home-dir ${localstatedir}/lib/tpm-mtls-pki --no-create-home \
    --shell ${base_sbindir}/nologin tpm-mtls-pki \
"

do_install:append() {
    install -d ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/packaging/systemd/*.service ${S}/packaging/systemd/*.socket \
        ${S}/packaging/systemd/*.timer ${D}${systemd_system_unitdir}/
    install -D -m 0644 ${S}/packaging/tmpfiles.d/tpm-mtls.conf ${D}${nonarch_libdir}/tmpfiles.d/tpm-mtls.conf
    install -D -m 0644 ${S}/packaging/logrotate.d/tpm-mtls ${D}${sysconfdir}/logrotate.d/tpm-mtls
    install -D -m 0644 ${S}/packaging/config.toml ${D}${sysconfdir}/tpm-mtls/config.toml
}

PACKAGES =+ "${PN}-agent ${PN}-backend ${PN}-renew"
FILES:${PN} += "\
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir}/tpm-mtls-first-boot.service \
    ${systemd_system_unitdir}/tpm-mtls-provision.service \
"
FILES:${PN}-agent += "${systemd_system_unitdir}/tpm-mtls-agent.* ${sysconfdir}/logrotate.d"
FILES:${PN}-backend += "${systemd_system_unitdir}/tpm-mtls-server* ${systemd_system_unitdir}/tpm-mtls-pki.service"
FILES:${PN}-renew += "${systemd_system_unitdir}/tpm-mtls-renew.*"
CONFFILES:${PN} = "${sysconfdir}/tpm-mtls/config.toml"

RDEPENDS:${PN} += "\
    libtss2 \
    libtss2-mu \
    libtss2-tcti-device \
    openssl \
    python3-aiohttp \
    python3-click \
    python3-cryptography \
    python3-modules \
    python3-msgspec \
    python3-pyopenssl \
    python3-rich \
    python3-sqlalchemy \
    python3-tpm2-pytss \
    python3-urllib3 \
    tpm2-openssl \
"
RDEPENDS:${PN}-agent = "${PN}"
RDEPENDS:${PN}-backend = "${PN} curl"
RDEPENDS:${PN}-renew = "${PN}"
