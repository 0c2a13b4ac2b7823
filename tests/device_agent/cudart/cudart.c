/* A stand-in for libcudart: device memory is host memory, streams do their work at once.

It is strict about what it is given: every handle must be one that it gave out and has not taken
back, copies must lie within one allocation, events must have been recorded before they are read.
What is wrong returns cudaErrorInvalidValue (1) and adds to boardfit_faults. Declarations are those
of the CUDA Runtime API's reference; nothing here proves that a GPU does the same. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NONE, DEVICE, PINNED, STREAM, EVENT, GRAPH, EXEC };
typedef struct { int kind; char *at; size_t size; unsigned flags; int marked; double at_ms; } Held;

static Held held[4096];
static int used, capturing, version = 10020;
int boardfit_faults, boardfit_fail_next, boardfit_launches;

static int fault(void) { boardfit_faults++; return 1; }

static int next_fails(void) {
    int code = boardfit_fail_next;
    boardfit_fail_next = 0;
    return code;
}

static Held *find(void *handle, int kind) {
    for (int i = 0; i < used; i++)
        if (held[i].kind == kind && held[i].at == (char *)handle) return &held[i];
    return NULL;
}

static int within(const void *p, size_t size, int kind) {
    const char *at = p;
    for (int i = 0; i < used; i++)
        if (held[i].kind == kind && at >= held[i].at && at + size <= held[i].at + held[i].size)
            return 1;
    return 0;
}

static int give(void **to, int kind, size_t size, unsigned flags) {
    int code = next_fails();
    if (code) return code;
    if (!to || !size || used == 4096) return fault();
    held[used] = (Held){kind, calloc(1, size), size, flags, 0, 0.0};
    *to = held[used++].at;
    return 0;
}

static int take(void *handle, int kind) {
    Held *one = find(handle, kind);
    if (!one) return fault();
    free(one->at);
    one->kind = NONE;
    return 0;
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

void boardfit_set_version(int number) { version = number; }
int boardfit_held(int kind) {
    int n = 0;
    for (int i = 0; i < used; i++) n += kind ? held[i].kind == kind : held[i].kind != NONE;
    return n;
}
int boardfit_is_device(void *p, size_t size) { return within(p, size, DEVICE); }
int boardfit_is_stream(void *p) { return find(p, STREAM) != NULL; }
unsigned boardfit_flags(void *p, int kind) { Held *h = find(p, kind); return h ? h->flags : 99; }

const char *cudaGetErrorName(int code) {
    return code == 2 ? "cudaErrorMemoryAllocation" : code == 1 ? "cudaErrorInvalidValue" : "other";
}
const char *cudaGetErrorString(int code) {
    return code == 2 ? "out of memory" : code == 1 ? "invalid argument" : "something else";
}
int cudaRuntimeGetVersion(int *v) { *v = version; return 0; }
int cudaDriverGetVersion(int *v) { *v = version; return 0; }
int cudaGetDeviceCount(int *n) {
    *n = getenv("BOARDFIT_NO_GPU") ? 0 : 1;
    return next_fails();
}
int cudaSetDevice(int device) { return device ? fault() : 0; }
int cudaDeviceGetAttribute(int *v, int what, int device) {
    const char *compute = getenv("BOARDFIT_COMPUTE");
    if (device || !v) return fault();
    if (!compute) compute = "5.3";
    if (what == 75) *v = atoi(compute);
    else if (what == 76) *v = atoi(strchr(compute, '.') + 1);
    else if (what == 16) *v = 1;
    else return fault();
    return 0;
}
int cudaGetDeviceProperties(char *properties, int device) {
    if (device || !properties) return fault();
    memset(properties, 7, 1032);
    strcpy(properties, "NVIDIA Tegra X1");
    return 0;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = (size_t)3 << 30;
    *total = (size_t)4 << 30;
    return 0;
}
int cudaMalloc(void **to, size_t size) { return give(to, DEVICE, size, 0); }
int cudaFree(void *p) { return take(p, DEVICE); }
int cudaHostAlloc(void **to, size_t size, unsigned flags) { return give(to, PINNED, size, flags); }
int cudaFreeHost(void *p) { return take(p, PINNED); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    int code = next_fails();
    if (code) return code;
    if (!find(stream, STREAM) || (kind != 1 && kind != 2)) return fault();
    if (!within(to, size, kind == 1 ? DEVICE : PINNED)) return fault();
    if (!within(from, size, kind == 1 ? PINNED : DEVICE)) return fault();
    memcpy(to, from, size);
    return 0;
}
int cudaStreamCreateWithFlags(void **to, unsigned flags) { return give(to, STREAM, 1, flags); }
int cudaStreamSynchronize(void *s) { return find(s, STREAM) && !capturing ? 0 : fault(); }
int cudaStreamDestroy(void *s) { return take(s, STREAM); }
int cudaEventCreateWithFlags(void **to, unsigned flags) { return give(to, EVENT, 1, flags); }
int cudaEventRecord(void *e, void *s) {
    Held *event = find(e, EVENT);
    if (!event || !find(s, STREAM)) return fault();
    event->marked = 1;
    event->at_ms = now_ms();
    return 0;
}
int cudaEventSynchronize(void *e) {
    Held *event = find(e, EVENT);
    return event && event->marked ? 0 : fault();
}
int cudaEventElapsedTime(float *ms, void *first, void *second) {
    Held *a = find(first, EVENT), *b = find(second, EVENT);
    if (!a || !b || !a->marked || !b->marked) return fault();
    *ms = (float)(b->at_ms - a->at_ms);
    return 0;
}
int cudaEventDestroy(void *e) { return take(e, EVENT); }
int cudaStreamBeginCapture(void *s, int mode) {
    if (!find(s, STREAM) || mode != 1 || capturing) return fault();
    capturing = 1;
    return 0;
}
int cudaStreamEndCapture(void *s, void **graph) {
    if (!find(s, STREAM) || !capturing) return fault();
    capturing = 0;
    return give(graph, GRAPH, 1, 0);
}
int cudaGraphInstantiate(void **exec, void *graph, void **node, char *log, size_t size) {
    if (!find(graph, GRAPH) || node || log || size || version >= 12000) return fault();
    return give(exec, EXEC, 1, 0);
}
int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    if (!find(graph, GRAPH) || flags || version < 11040) return fault();
    return give(exec, EXEC, 1, 0);
}
int cudaGraphLaunch(void *exec, void *s) {
    if (!find(exec, EXEC) || !find(s, STREAM)) return fault();
    boardfit_launches++;
    return 0;
}
int cudaGraphExecDestroy(void *exec) { return take(exec, EXEC); }
int cudaGraphDestroy(void *graph) { return take(graph, GRAPH); }
