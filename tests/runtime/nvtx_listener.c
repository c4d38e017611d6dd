/* What a profiler is to NVTX: a library that is handed the ranges. It writes them to a file. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*function)(void);

struct callbacks {
    size_t size;
    int (*module_functions)(int module, function ***table, unsigned *count);
};

struct attributes {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
};

enum { CALLBACKS = 1, CORE2 = 5, PUSH = 4, POP = 5, REGISTER = 10, CREATE = 12 };

static FILE *file;
static int depth;

static int push(void *domain, const struct attributes *range) {
    fprintf(file, "%s %d %s\n", (char *)domain, depth, range->message);
    fflush(file);
    return depth++;
}

static int pop(void *domain) {
    return --depth;
}

static void *keep(void *domain, const char *text) {
    return strdup(text);
}

static void *create(const char *name) {
    return strdup(name);
}

int InitializeInjectionNvtx2(const void *(*find)(uint32_t)) {
    const struct callbacks *table = find(CALLBACKS);
    function **functions;
    unsigned count;
    file = fopen(getenv("NVTX_LISTENER_FILE"), "w");
    if (!file || !table->module_functions(CORE2, &functions, &count))
        return 0;
    *functions[PUSH] = (function)push;
    *functions[POP] = (function)pop;
    *functions[REGISTER] = (function)keep;
    *functions[CREATE] = (function)create;
    return 1;
}
