/* Notes every host a process looks for and every address it connects to that is not this machine's own.
 *
 * Preloaded; libraries that bring their own HTTP client go through these functions of the C library, too. CALLS_OUT
 * names the file that gets a line each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void note(const char *what) {
    FILE *file = fopen(getenv("CALLS_OUT"), "a");
    if (!file) abort();
    fprintf(file, "%s\n", what);
    fclose(file);
}

int connect(int descriptor, const struct sockaddr *address, socklen_t length) {
    char text[INET6_ADDRSTRLEN] = "";
    if (address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
    if (address->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
    if (*text && strncmp(text, "127.", 4) && strcmp(text, "::1")) note(text);
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return next(descriptor, address, length);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (host && *host && strncmp(host, "127.", 4) && strcmp(host, "::1") && strcmp(host, "localhost")) note(host);
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    return next(host, service, hints, found);
}
