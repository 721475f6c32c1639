/* Mutual TLS in C with the device's key, wherever that is: in a TSS2 PEM file, at a persistent handle of the TPM, or in
 * an ordinary PEM file. Only the key's name differs, so nothing here knows of a TPM: OpenSSL's configuration
 * (OPENSSL_CONF, see tpm-mtls openssl-env) activates the provider that does.
 *
 *   make
 *   eval "$(tpm-mtls openssl-env)"
 *   ./client backend.example 443 /whoami ca.cert.pem device.cert.pem device.key.pem
 *   ./client backend.example 443 /whoami ca.cert.pem device.cert.pem handle:0x81000100
 *
 * The answer goes to standard output, on a terminal with a newline at its end; the exit status is 0 for a 2xx one. */

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/store.h>

enum { TIMEOUT_SECONDS = 30, ANSWER_LIMIT = 1 << 20 };

static bool failed(const char *what) {
    fprintf(stderr, "client: %s\n", what);
    ERR_print_errors_fp(stderr);
    return false;
}

/* The first private key at uri, or NULL. OSSL_STORE reads files and the provider's handles alike. */
static EVP_PKEY *load_key(const char *uri) {
    OSSL_STORE_CTX *store = OSSL_STORE_open(uri, NULL, NULL, NULL, NULL);
    EVP_PKEY *key = NULL;

    if (store == NULL)
        return NULL;
    if (OSSL_STORE_expect(store, OSSL_STORE_INFO_PKEY) == 1) {
        while (key == NULL && !OSSL_STORE_eof(store)) {
            OSSL_STORE_INFO *info = OSSL_STORE_load(store);
            if (info == NULL)
                continue; /* not an error by itself: what could not be decoded is skipped until the end */
            key = OSSL_STORE_INFO_get1_PKEY(info);
            OSSL_STORE_INFO_free(info);
        }
    }
    OSSL_STORE_close(store);
    return key;
}

/* TLS 1.3, the server's chain verified against ca and nothing else, our certificate and key. */
static bool configure(SSL_CTX *context, const char *ca, const char *certificate, const char *key_uri) {
    EVP_PKEY *key;
    bool taken;

    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1)
        return failed("this OpenSSL has no TLS 1.3");
    if (SSL_CTX_load_verify_file(context, ca) != 1)
        return failed("cannot read the CA's certificate");
    if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1)
        return failed("cannot read our certificate");
    key = load_key(key_uri);
    if (key == NULL)
        return failed("cannot load the key");
    taken = SSL_CTX_use_PrivateKey(context, key) == 1; /* refuses a key that is not the certificate's */
    EVP_PKEY_free(key);
    return taken || failed("the key does not fit the certificate");
}

/* Sends a GET request, copies the answer to standard output, and says whether its status was 2xx. */
static bool request(SSL *ssl, const char *host, const char *path) {
    char piece[4096], status[] = "000", last = '\n';
    int length, total = 0;

    length = BIO_snprintf(piece, sizeof piece, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host);
    if (length < 0 || SSL_write(ssl, piece, length) != length)
        return failed("cannot send the request");
    while ((length = SSL_read(ssl, piece, sizeof piece)) > 0) {
        if (total == 0 && length > 12) /* HTTP/1.1 200 */
            memcpy(status, piece + 9, 3);
        total += length;
        if (total > ANSWER_LIMIT)
            return failed("the answer is longer than 1 MiB");
        fwrite(piece, 1, (size_t)length, stdout);
        last = piece[length - 1];
    }
    if (last != '\n' && isatty(STDOUT_FILENO))
        putchar('\n'); /* else the shell's prompt stands behind it in the same line */
    if (total == 0) /* with TLS 1.3 a refused certificate shows here, not in the handshake */
        return failed("the server did not answer");
    if ((SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN) == 0)
        return failed("the answer is cut off");
    return status[0] == '2';
}

/* A TCP connection on which neither reading nor writing hangs, or NULL. */
static BIO *connect_tcp(const char *host, const char *port) {
    BIO *tcp = BIO_new(BIO_s_connect());
    struct timeval limit = {.tv_sec = TIMEOUT_SECONDS};
    int socket;

    if (tcp == NULL)
        return NULL;
    BIO_set_conn_hostname(tcp, host);
    BIO_set_conn_port(tcp, port);
    if (BIO_do_connect(tcp) == 1 && BIO_get_fd(tcp, &socket) >= 0 &&
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0)
        return tcp;
    BIO_free(tcp);
    return NULL;
}

/* Connects, does the handshake, in which the server must prove to be host, and the request. */
static bool talk(SSL_CTX *context, const char *host, const char *port, const char *path) {
    BIO *tcp = connect_tcp(host, port), *connection;
    SSL *ssl = NULL;
    bool done;

    if (tcp == NULL)
        return failed("cannot connect");
    connection = BIO_push(BIO_new_ssl(context, 1), tcp);
    if (BIO_get_ssl(connection, &ssl) != 1 || SSL_set_tlsext_host_name(ssl, host) != 1 || SSL_set1_host(ssl, host) != 1)
        done = failed("cannot prepare TLS");
    else if (BIO_do_handshake(connection) != 1)
        done = failed("the handshake failed");
    else
        done = request(ssl, host, path);
    BIO_free_all(connection);
    return done;
}

int main(int count, char **arguments) {
    SSL_CTX *context;
    bool done;

    if (count != 7) {
        fprintf(stderr, "usage: %s HOST PORT PATH CA CERTIFICATE KEY\n", arguments[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN); /* a server that refuses us may have hung up when the request is sent */
    context = SSL_CTX_new(TLS_client_method());
    done = context != NULL && configure(context, arguments[4], arguments[5], arguments[6]) &&
           talk(context, arguments[1], arguments[2], arguments[3]);
    SSL_CTX_free(context);
    return done ? 0 : 1;
}
