/* The tiny guest's one program: echo servers, a memory writer, a disk writer with checksums, a control port, the ACPI
 * power button, and as much of the QEMU guest agent as tests need. One process, poll() for all that waits, one thread
 * for each writer. It is compiled statically when the image is built.
 *
 * Port 7, UDP and TCP: echo. Port 9, TCP: one request a line, one JSON line back (see `request`).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 64
#define LINE 4096
#define BLOCK 4096

enum kind { FREE, UDP_ECHO, ECHO_LISTEN, CONTROL_LISTEN, TCP_ECHO, CONTROL, BUTTON };

static struct pollfd polled[CONNECTIONS];
static struct { enum kind kind; char line[LINE]; size_t length; } state[CONNECTIONS];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pause_ns(uint64_t ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* --- memory writer: dirties `size` MB over and over at `rate` MB/s --- */

static struct { pthread_t thread; atomic_bool on; bool joinable; long rate, size; _Atomic uint64_t written; } memory;

static void *memory_main(void *unused) {
    (void)unused;
    size_t size = (size_t)memory.size << 20;
    unsigned char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) { memory.on = false; return NULL; }
    uint64_t started = now_ns(), pages = 0;
    size_t at = 0;
    while (memory.on) {
        *(uint64_t *)(area + at) = ++pages;
        at = (at + 4096) % size;
        memory.written = pages * 4096;
        if (pages % 16 == 0) {
            /* A page at 1 MB/s takes 4096 / 2^20 s, which is 3906250 ns exactly. */
            uint64_t due = started + pages * 3906250u / (uint64_t)(memory.rate > 0 ? memory.rate : 1);
            uint64_t now = now_ns();
            if (due > now) pause_ns(due - now);
        }
    }
    munmap(area, size);
    return NULL;
}

static void memory_stop(void) {
    memory.on = false;
    if (memory.joinable) pthread_join(memory.thread, NULL);
    memory.joinable = false;
}

static int memory_start(long rate, long size) {
    memory_stop();
    memory.rate = rate; memory.size = size; memory.written = 0; memory.on = true;
    memory.joinable = pthread_create(&memory.thread, NULL, memory_main, NULL) == 0;
    return memory.joinable ? 0 : -1;
}

/* --- disk writer: numbered, checksummed blocks with O_DIRECT, each read back and checked later --- */

static struct {
    pthread_t thread; atomic_bool on; bool joinable; char device[80];
    _Atomic uint64_t written, verified, errors; _Atomic uint64_t worst_ms;
} disk;

static uint64_t checksum(const uint64_t *words, size_t count) { /* FNV-1a over words */
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < count; i++) hash = (hash ^ words[i]) * 1099511628211u;
    return hash;
}

static void block_fill(uint64_t *words, uint64_t number) {
    uint64_t seed = number * 0x9E3779B97F4A7C15u + 1;
    words[0] = number;
    for (size_t i = 2; i < BLOCK / 8; i++) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; words[i] = seed; }
    words[1] = checksum(words + 2, BLOCK / 8 - 2) ^ number;
}

static bool block_holds(const uint64_t *words, uint64_t number) {
    return words[0] == number && words[1] == (checksum(words + 2, BLOCK / 8 - 2) ^ number);
}

static void *disk_main(void *unused) {
    (void)unused;
    uint64_t *words = NULL, bytes = 0, number = 0;
    int fd = open(disk.device, O_RDWR | O_DIRECT | O_SYNC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) || bytes < BLOCK || !(words = aligned_alloc(BLOCK, BLOCK))) {
        disk.errors++; disk.on = false;
        if (fd >= 0) close(fd);
        return NULL;
    }
    uint64_t blocks = bytes / BLOCK;
    if (blocks > 4096) blocks = 4096; /* 16 MB around and around: old blocks are checked before they are replaced */
    while (disk.on) {
        uint64_t began = now_ns();
        off_t place = (off_t)(number % blocks * BLOCK);
        if (number >= blocks) {
            if (pread(fd, words, BLOCK, place) != BLOCK || !block_holds(words, number - blocks)) disk.errors++;
            else disk.verified++;
        }
        block_fill(words, number);
        if (pwrite(fd, words, BLOCK, place) != BLOCK) disk.errors++;
        else disk.written = ++number;
        uint64_t took = (now_ns() - began) / 1000000;
        if (took > disk.worst_ms) disk.worst_ms = took;
        pause_ns(2000000);
    }
    /* At the end all that should be there is read back. */
    for (uint64_t n = number > blocks ? number - blocks : 0; n < number; n++) {
        if (pread(fd, words, BLOCK, (off_t)(n % blocks * BLOCK)) != BLOCK || !block_holds(words, n)) disk.errors++;
        else disk.verified++;
    }
    free(words);
    close(fd);
    return NULL;
}

static void disk_stop(void) {
    disk.on = false;
    if (disk.joinable) pthread_join(disk.thread, NULL);
    disk.joinable = false;
}

static int disk_start(const char *device) {
    disk_stop();
    snprintf(disk.device, sizeof disk.device, "%s", device);
    disk.written = disk.verified = disk.errors = disk.worst_ms = 0;
    disk.on = true;
    disk.joinable = pthread_create(&disk.thread, NULL, disk_main, NULL) == 0;
    return disk.joinable ? 0 : -1;
}

/* --- power --- */

static void power_off(void) { sync(); reboot(RB_POWER_OFF); }

static void file_write(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd >= 0) { if (write(fd, text, strlen(text)) < 0) perror(path); close(fd); }
}

static void boot_id(char *into, size_t size) {
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
    ssize_t got = fd >= 0 ? read(fd, into, size - 1) : 0;
    if (fd >= 0) close(fd);
    into[got > 0 ? got : 0] = 0;
    into[strcspn(into, "\n")] = 0;
}

/* --- control port --- */

static void request(const char *line, char *reply, size_t size) {
    char text[80];
    long rate, amount;
    if (!strcmp(line, "boot-id")) {
        boot_id(text, sizeof text);
        snprintf(reply, size, "{\"boot_id\": \"%s\"}\n", text);
    } else if (!strcmp(line, "uptime")) {
        snprintf(reply, size, "{\"uptime_ms\": %llu}\n", (unsigned long long)(now_ns() / 1000000));
    } else if (!strcmp(line, "mem off")) {
        memory_stop();
        snprintf(reply, size, "{\"ok\": true}\n");
    } else if (!strcmp(line, "mem")) {
        snprintf(reply, size, "{\"on\": %s, \"written\": %llu}\n", memory.on ? "true" : "false", (unsigned long long)memory.written);
    } else if (sscanf(line, "mem %ld %ld", &rate, &amount) == 2 && amount > 0) {
        snprintf(reply, size, "{\"ok\": %s}\n", memory_start(rate, amount) ? "false" : "true");
    } else if (sscanf(line, "disk start %63s", text) == 1) {
        snprintf(reply, size, "{\"ok\": %s}\n", disk_start(text) ? "false" : "true");
    } else if (!strcmp(line, "disk stop") || !strcmp(line, "disk check")) {
        if (!strcmp(line + 5, "stop")) disk_stop();
        snprintf(reply, size, "{\"on\": %s, \"written\": %llu, \"verified\": %llu, \"errors\": %llu, \"worst_ms\": %llu}\n",
                 disk.on ? "true" : "false", (unsigned long long)disk.written, (unsigned long long)disk.verified,
                 (unsigned long long)disk.errors, (unsigned long long)disk.worst_ms);
    } else if (!strcmp(line, "poweroff")) {
        power_off();
    } else if (!strcmp(line, "reboot")) {
        sync();
        reboot(RB_AUTOBOOT);
    } else if (!strcmp(line, "panic")) {
        file_write("/proc/sys/kernel/sysrq", "1");
        file_write("/proc/sysrq-trigger", "c");
    } else {
        snprintf(reply, size, "{\"error\": \"unknown request\"}\n");
    }
}

/* --- guest agent: sync, ping, info, shutdown, interfaces are all that is answered --- */

static void agent(int fd, char *line) {
    char reply[LINE] = "", id[80] = "";
    while ((unsigned char)*line == 0xFF) line++; /* guest-sync-delimited begins with it */
    if (!*line) return;
    char *found = strstr(line, "\"id\"");
    if (found && (found = strchr(found, ':'))) sscanf(found + 1, " %79[^,} ]", id);
    if (strstr(line, "\"guest-sync-delimited\"")) snprintf(reply, sizeof reply, "\xff{\"return\": %s}\n", id);
    else if (strstr(line, "\"guest-sync\"")) snprintf(reply, sizeof reply, "{\"return\": %s}\n", id);
    else if (strstr(line, "\"guest-ping\"")) snprintf(reply, sizeof reply, "{\"return\": {}}\n");
    else if (strstr(line, "\"guest-info\""))
        snprintf(reply, sizeof reply, "{\"return\": {\"version\": \"serai-tiny\", \"supported_commands\": []}}\n");
    else if (strstr(line, "\"guest-get-osinfo\""))
        snprintf(reply, sizeof reply, "{\"return\": {\"id\": \"serai-tiny\", \"name\": \"Serai tiny guest\"}}\n");
    else if (strstr(line, "\"guest-shutdown\"")) power_off();
    else snprintf(reply, sizeof reply, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not known to the tiny guest\"}}\n");
    if (*reply && write(fd, reply, strlen(reply)) < 0) perror("agent");
}

static int open_agent(void) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    while (ports && (entry = readdir(ports))) {
        char path[320], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        if (read(fd, name, sizeof name - 1) < 0) name[0] = 0;
        close(fd);
        if (strncmp(name, "org.qemu.guest_agent.0", 22)) continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        closedir(ports);
        return open(path, O_RDWR | O_CLOEXEC);
    }
    if (ports) closedir(ports);
    return -1;
}

/* A thread of its own: a port whose other end is closed says "hung up" for ever, and that must not slow the echo. */
static void *agent_main(void *unused) {
    (void)unused;
    static char line[LINE];
    size_t length = 0;
    int fd = open_agent();
    while (fd >= 0) {
        char byte;
        ssize_t got = read(fd, &byte, 1);
        if (got <= 0) { length = 0; pause_ns(50000000); continue; }
        if (byte == '\n') { line[length] = 0; length = 0; agent(fd, line); }
        else if (length < LINE - 1) line[length++] = byte;
    }
    return NULL;
}

/* --- the loop --- */

static void add(int fd, enum kind kind) {
    if (fd < 0) return;
    for (int i = 0; i < CONNECTIONS; i++)
        if (state[i].kind == FREE) {
            polled[i] = (struct pollfd){.fd = fd, .events = POLLIN};
            state[i].kind = kind;
            state[i].length = 0;
            return;
        }
    close(fd);
}

static void drop(int i) {
    close(polled[i].fd);
    polled[i].fd = -1;
    state[i].kind = FREE;
}

static int serve(int type, int port) {
    int on = 1, off = 0, fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    if (fd < 0) { /* a kernel without IPv6 */
        struct sockaddr_in old = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&old, sizeof old)) perror("bind");
    } else {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&at, sizeof at)) perror("bind");
    }
    if (type == SOCK_STREAM && listen(fd, 16)) perror("listen");
    return fd;
}

static void on_lines(int i, const char *data, ssize_t got) {
    for (ssize_t k = 0; k < got; k++) {
        if (data[k] != '\n') {
            if (state[i].length < LINE - 1) state[i].line[state[i].length++] = data[k];
            continue;
        }
        state[i].line[state[i].length] = 0;
        state[i].length = 0;
        char reply[LINE] = "";
        state[i].line[strcspn(state[i].line, "\r")] = 0;
        request(state[i].line, reply, sizeof reply);
        if (write(polled[i].fd, reply, strlen(reply)) < 0) { drop(i); return; }
    }
}

static void on_ready(int i) {
    static char data[65536];
    struct sockaddr_in6 from;
    socklen_t length = sizeof from;
    int on = 1;
    ssize_t got;
    switch (state[i].kind) {
    case UDP_ECHO:
        got = recvfrom(polled[i].fd, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (got >= 0) sendto(polled[i].fd, data, (size_t)got, 0, (struct sockaddr *)&from, length);
        break;
    case ECHO_LISTEN:
    case CONTROL_LISTEN: {
        int fd = accept(polled[i].fd, NULL, NULL);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        add(fd, state[i].kind == ECHO_LISTEN ? TCP_ECHO : CONTROL);
        break;
    }
    case BUTTON: {
        struct input_event event;
        if (read(polled[i].fd, &event, sizeof event) == sizeof event && event.type == EV_KEY && event.code == KEY_POWER && event.value)
            power_off();
        break;
    }
    default:
        got = read(polled[i].fd, data, sizeof data);
        if (got <= 0) {
            drop(i);
        } else if (state[i].kind == TCP_ECHO) {
            for (ssize_t sent = 0, n; sent < got; sent += n)
                if ((n = write(polled[i].fd, data + sent, (size_t)(got - sent))) <= 0) { drop(i); break; }
        } else on_lines(i, data, got);
    }
}

static void open_buttons(void) {
    for (int i = 0; i < 8; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        add(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), BUTTON);
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a client that is gone must not end the guest's only program */
    for (int i = 0; i < CONNECTIONS; i++) polled[i].fd = -1;
    add(serve(SOCK_DGRAM, 7), UDP_ECHO);
    add(serve(SOCK_STREAM, 7), ECHO_LISTEN);
    add(serve(SOCK_STREAM, 9), CONTROL_LISTEN);
    open_buttons();
    pthread_t agent_thread;
    pthread_create(&agent_thread, NULL, agent_main, NULL);
    if (argc == 3) memory_start(atol(argv[1]), atol(argv[2]));
    for (;;) {
        if (poll(polled, CONNECTIONS, -1) < 0 && errno != EINTR) { perror("poll"); pause_ns(100000000); }
        for (int i = 0; i < CONNECTIONS; i++) {
            if (state[i].kind == FREE || !polled[i].revents) continue;
            on_ready(i);
        }
    }
}
