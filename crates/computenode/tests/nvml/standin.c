/* Stands in for NVIDIA's management library where there is no GPU: an A100, and an H100 in MIG mode with two instances.
   The values of structs, constants and names are those of nvml.h of the driver 580.

   The folder NVML_STANDIN says what goes wrong: `xid` holds the number of an Xid error that the A100 is to report once,
   `ecc` how many memory errors of the H100 could not be corrected. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10 };
#define MIB (1ull << 20)

typedef struct device {
    const char *name, *uuid;
    unsigned long long total, used;
    struct device *whole; /* of which this is an instance */
    int major, minor, in_mig_mode;
} device;

static device h100 = {"NVIDIA H100 80GB HBM3", "GPU-22222222-2222-2222-2222-222222222222", 81559 * MIB, 0, 0, 9, 0, 1};
static device gpus[] = {
    {"NVIDIA A100-SXM4-80GB", "GPU-11111111-1111-1111-1111-111111111111", 81920 * MIB, 1920 * MIB, 0, 8, 0, 0},
};
static device instances[] = {
    {"NVIDIA H100 80GB HBM3 MIG 3g.40gb", "MIG-33333333-3333-3333-3333-333333333333", 40448 * MIB, 0, &h100, 9, 0, 0},
    {"NVIDIA H100 80GB HBM3 MIG 4g.40gb", "MIG-44444444-4444-4444-4444-444444444444", 40448 * MIB, 448 * MIB, &h100, 9, 0, 0},
};
static device *const all[] = {&gpus[0], &h100, &instances[0], &instances[1]};

/* The number in a file of the folder, 0 where there is none. */
static unsigned long long said(const char *name, int once) {
    char path[4096];
    unsigned long long number = 0;
    snprintf(path, sizeof path, "%s/%s", getenv("NVML_STANDIN"), name);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%llu", &number) != 1) number = 0;
    fclose(file);
    if (once && number) unlink(path);
    return number;
}

static int text(char *to, unsigned length, const char *from) {
    if (strlen(from) >= length) return TOO_SMALL;
    strcpy(to, from);
    return OK;
}

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "stand-in"; }
int nvmlSystemGetDriverVersion(char *to, unsigned length) { return text(to, length, "580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **gpu) {
    if (index > 1) return INVALID;
    *gpu = index ? &h100 : &gpus[0];
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device **gpu) {
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i]->uuid, uuid)) { *gpu = all[i]; return OK; }
    return NOT_FOUND;
}

int nvmlDeviceGetName(device *gpu, char *to, unsigned length) { return text(to, length, gpu->name); }
int nvmlDeviceGetUUID(device *gpu, char *to, unsigned length) { return text(to, length, gpu->uuid); }

int nvmlDeviceGetMemoryInfo_v2(device *gpu, struct { unsigned version; unsigned long long total, reserved, free, used; } *memory) {
    memory->total = gpu->total, memory->reserved = 0, memory->used = gpu->used, memory->free = gpu->total - gpu->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo(device *gpu, struct { unsigned long long total, free, used; } *memory) {
    memory->total = gpu->total, memory->free = gpu->total - gpu->used, memory->used = gpu->used;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(device *gpu, int *major, int *minor) {
    *major = gpu->major, *minor = gpu->minor;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device *gpu, struct { unsigned gpu, memory; } *rates) {
    if (gpu->whole || gpu->in_mig_mode) return UNSUPPORTED;
    rates->gpu = 37, rates->memory = 12;
    return OK;
}

int nvmlDeviceGetTemperature(device *gpu, int sensor, unsigned *celsius) {
    if (gpu->whole || sensor) return UNSUPPORTED;
    *celsius = 41;
    return OK;
}

int nvmlDeviceGetTemperatureThreshold(device *gpu, int which, unsigned *celsius) {
    if (gpu->whole || which != 1) return UNSUPPORTED;
    *celsius = 87;
    return OK;
}

int nvmlDeviceGetPowerUsage(device *gpu, unsigned *milliwatts) { *milliwatts = 120900; return gpu->whole ? UNSUPPORTED : OK; }
int nvmlDeviceGetEnforcedPowerLimit(device *gpu, unsigned *milliwatts) { *milliwatts = 400000; return gpu->whole ? UNSUPPORTED : OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(device *gpu, unsigned long long *reasons) { *reasons = 1; return gpu->whole ? UNSUPPORTED : OK; }

int nvmlDeviceGetTotalEccErrors(device *gpu, int kind, int counter, unsigned long long *count) {
    if (gpu->whole) return UNSUPPORTED;
    *count = gpu == &h100 && kind == 1 && counter == 0 ? said("ecc", 0) : 0;
    return OK;
}

typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute_instance; } process;

int nvmlDeviceGetComputeRunningProcesses_v3(device *gpu, unsigned *count, process *to) {
    if (gpu != &gpus[0]) { *count = 0; return OK; }
    if (!to || *count < 1) { *count = 1; return TOO_SMALL; }
    *count = 1, to[0].pid = 1, to[0].used = 1920 * MIB, to[0].instance = to[0].compute_instance = 0xffffffff;
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device *gpu, unsigned *count, process *to) {
    (void)gpu, (void)to;
    *count = 0;
    return OK;
}

int nvmlDeviceGetMigMode(device *gpu, unsigned *now, unsigned *then) {
    *now = *then = (unsigned)gpu->in_mig_mode;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(device *gpu, unsigned *count) { *count = gpu->in_mig_mode ? 7 : 0; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(device *gpu, unsigned index, device **instance) {
    if (!gpu->in_mig_mode || index > 1) return NOT_FOUND;
    *instance = &instances[index];
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device *instance, device **gpu) {
    if (!instance->whole) return INVALID;
    *gpu = instance->whole;
    return OK;
}

int nvmlEventSetCreate(void **set) { static int one; *set = &one; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(device *gpu, unsigned long long kinds, void *set) { (void)kinds, (void)set; return gpu->whole ? UNSUPPORTED : OK; }

int nvmlEventSetWait_v2(void *set, struct { device *gpu; unsigned long long kind, data; unsigned instance, compute_instance; } *event,
                        unsigned milliseconds) {
    (void)set;
    for (unsigned waited = 0; waited < milliseconds; waited += 10) {
        unsigned long long xid = said("xid", 1);
        if (xid) {
            event->gpu = &gpus[0], event->kind = 8, event->data = xid;
            event->instance = event->compute_instance = 0xffffffff;
            return OK;
        }
        usleep(10000);
    }
    return TIMED_OUT;
}
