/* The least that a TLS client with a key in the TPM can do: C, OpenSSL, the tpm2 provider, and nothing of this project.
 *
 *   bench_handshake PORT TRUST CERTIFICATE KEY VERSION
 *
 * KEY is what OSSL_STORE takes: a file or handle:0x81000100; VERSION is TLSv1_3 or TLSv1_2. The provider comes from
 * OPENSSL_CONF. It says "ready" when its SSL_CTX is made. Then, for each line "COUNT THREADS" on stdin, it makes COUNT
 * requests to https://localhost:PORT/ on a new connection each, in THREADS threads, and answers with one line: the
 * microseconds that all of it took, then those of each request. It ends with its stdin. */
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/store.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static SSL_CTX *context;
static struct sockaddr_in server;

struct turn { /* what one thread does */
    pthread_t thread;
    int count;
    double *microseconds;
};

static void fail(const char *what) {
    fprintf(stderr, "bench_handshake: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static EVP_PKEY *load_key(const char *reference) {
    OSSL_STORE_CTX *store = OSSL_STORE_open(reference, NULL, NULL, NULL, NULL);
    EVP_PKEY *key = NULL;
    while (store && !key && !OSSL_STORE_eof(store)) {
        OSSL_STORE_INFO *found = OSSL_STORE_load(store);
        if (found)
            key = OSSL_STORE_INFO_get1_PKEY(found);
        OSSL_STORE_INFO_free(found);
    }
    OSSL_STORE_close(store);
    return key;
}

static void request(void) {
    static const char question[] = "GET / HTTP/1.0\r\n\r\n";
    char answer[4096];
    size_t had = 0;
    int got, descriptor = socket(AF_INET, SOCK_STREAM, 0);
    SSL *tls = SSL_new(context);

    if (descriptor < 0 || connect(descriptor, (struct sockaddr *)&server, sizeof server))
        fail("nobody listens");
    SSL_set_fd(tls, descriptor);
    SSL_set1_host(tls, "localhost");
    SSL_set_tlsext_host_name(tls, "localhost");
    if (SSL_connect(tls) != 1)
        fail("the handshake failed");
    if (SSL_write(tls, question, sizeof question - 1) <= 0)
        fail("the request was not sent");
    while (had < sizeof answer - 1 && (got = SSL_read(tls, answer + had, sizeof answer - 1 - had)) > 0)
        had += got;
    answer[had] = 0;
    if (!strstr(answer, "SUCCESS|"))
        fail("the server saw no valid client certificate");
    if (SSL_session_reused(tls))
        fail("the session was resumed");
    SSL_shutdown(tls);
    SSL_free(tls);
    close(descriptor);
}

static void *requests(void *argument) {
    struct turn *turn = argument;
    for (int i = 0; i < turn->count; i++) {
        double begun = now();
        request();
        turn->microseconds[i] = now() - begun;
    }
    return NULL;
}

static void all_requests(int count, int threads) {
    struct turn *turns = calloc(threads, sizeof *turns);
    double *microseconds = calloc(count, sizeof *microseconds), *next = microseconds, begun = now();

    for (int i = 0; i < threads; i++) {
        turns[i].count = count / threads + (i < count % threads);
        turns[i].microseconds = next;
        next += turns[i].count;
        if (pthread_create(&turns[i].thread, NULL, requests, &turns[i]))
            fail("no thread");
    }
    for (int i = 0; i < threads; i++)
        pthread_join(turns[i].thread, NULL);
    printf("%.0f", now() - begun);
    for (int i = 0; i < count; i++)
        printf(" %.0f", microseconds[i]);
    printf("\n");
    fflush(stdout);
    free(microseconds);
    free(turns);
}

int main(int argc, char **argv) {
    char line[64];
    int count, threads, version;
    EVP_PKEY *key;

    if (argc != 6)
        fail("usage: bench_handshake PORT TRUST CERTIFICATE KEY VERSION");
    signal(SIGPIPE, SIG_IGN);
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons((unsigned short)atoi(argv[1]));
    version = strcmp(argv[5], "TLSv1_2") ? TLS1_3_VERSION : TLS1_2_VERSION;
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, version) || !SSL_CTX_set_max_proto_version(context, version))
        fail("no context");
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    if (SSL_CTX_load_verify_locations(context, argv[2], NULL) != 1)
        fail("the trust file is unusable");
    if (SSL_CTX_use_certificate_chain_file(context, argv[3]) != 1)
        fail("the certificate is unusable");
    if (!(key = load_key(argv[4])) || SSL_CTX_use_PrivateKey(context, key) != 1)
        fail("the key is unusable");
    EVP_PKEY_free(key);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin))
        if (sscanf(line, "%d %d", &count, &threads) == 2 && count > 0 && threads > 0)
            all_requests(count, threads);
    SSL_CTX_free(context);
    return 0;
}
