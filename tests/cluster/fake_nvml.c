/* A libnvidia-ml.so.1 without a GPU, for the functions that core/cluster/agent.py calls. Its state is the file
   $FAKE_NVML_FILE, read at every call, one line a GPU:

       util memory_used_mib memory_total_mib temperature power_w limit_w clock ecc_uncorrected throttle pid pid_mib
   or  lost        every call about this GPU fails as for one that has fallen off the bus
   or  block       (first line) every call hangs until the line is gone, as in a driver that is stuck                    */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FAKE_NVML_FILE /* a fixed path for a whole host, else by the environment */
#define FAKE_NVML_FILE getenv("FAKE_NVML_FILE")
#endif

typedef int Result;
typedef void *Device;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15 };
typedef struct {
    int lost;
    unsigned util, used, total, temperature, power, limit, clock, pid, pid_mib;
    unsigned long long ecc, throttle;
} Gpu;
static Gpu gpus[64];
static int count;

static Result load(void) {
    const char *path = FAKE_NVML_FILE;
    char line[512];
    for (;;) {
        int blocked = 0;
        FILE *file = path ? fopen(path, "r") : 0;
        if (!file) return NOT_LOADED;
        count = 0;
        while (count < 64 && fgets(line, sizeof line, file)) {
            Gpu *gpu = &gpus[count];
            memset(gpu, 0, sizeof *gpu);
            if (!strncmp(line, "block", 5)) { blocked = 1; break; }
            gpu->lost = !strncmp(line, "lost", 4);
            if (gpu->lost || sscanf(line, "%u %u %u %u %u %u %u %llu %llu %u %u", &gpu->util, &gpu->used, &gpu->total,
                                    &gpu->temperature, &gpu->power, &gpu->limit, &gpu->clock, &gpu->ecc, &gpu->throttle,
                                    &gpu->pid, &gpu->pid_mib) == 11)
                count++;
        }
        fclose(file);
        if (!blocked) return OK;
        usleep(20000);
    }
}

static Result find(Device device, Gpu **gpu) {
    int index = (int)(long)device - 1;
    Result result = load();
    if (result) return result;
    if (index < 0 || index >= count) return INVALID;
    *gpu = &gpus[index];
    return (*gpu)->lost ? LOST : OK;
}
#define FIND Gpu *gpu; Result result = find(device, &gpu); if (result) return result

Result nvmlInit_v2(void) { return load(); }
const char *nvmlErrorString(Result result) {
    return result == LOST ? "GPU is lost" : result == NOT_LOADED ? "Driver Not Loaded" : "Fake error";
}
Result nvmlDeviceGetCount_v2(unsigned *number) { Result result = load(); *number = count; return result; }
Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    Gpu *gpu;
    *device = (Device)(long)(index + 1);
    return find(*device, &gpu);
}
Result nvmlDeviceGetName(Device device, char *text, unsigned length) {
    snprintf(text, length, "NVIDIA H100 80GB HBM3 (fake)");
    return OK;
}
Result nvmlDeviceGetUtilizationRates(Device device, unsigned *rates) {
    FIND; rates[0] = gpu->util; rates[1] = 0; return OK;
}
Result nvmlDeviceGetMemoryInfo(Device device, unsigned long long *memory) {
    FIND;
    memory[0] = (unsigned long long)gpu->total << 20;
    memory[2] = (unsigned long long)(gpu->used + 500) << 20; /* with the driver's own share */
    memory[1] = memory[0] - memory[2];
    return OK;
}
#ifndef OLD_DRIVER
typedef struct { unsigned version; unsigned long long total, reserved, free_, used; } MemoryV2;
Result nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    FIND;
    if (memory->version != (sizeof *memory | 2 << 24)) return INVALID;
    memory->total = (unsigned long long)gpu->total << 20;
    memory->used = (unsigned long long)gpu->used << 20;
    return OK;
}
#endif
Result nvmlDeviceGetTemperature(Device device, int sensor, unsigned *value) { FIND; *value = gpu->temperature; return OK; }
Result nvmlDeviceGetPowerUsage(Device device, unsigned *value) { FIND; *value = gpu->power * 1000; return OK; }
Result nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *value) {
    FIND;
    *value = gpu->limit * 1000;
    return gpu->limit ? OK : NOT_SUPPORTED; /* a laptop's GPU has none */
}
Result nvmlDeviceGetClockInfo(Device device, int type, unsigned *value) { FIND; *value = gpu->clock; return OK; }
Result nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, unsigned long long *value) {
    FIND; *value = type == 1 ? gpu->ecc : 0; return OK;
}
Result nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *value) {
    FIND; *value = gpu->throttle; return OK;
}
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
Result nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *number, Process *found) {
    FIND;
    unsigned room = *number;
    *number = gpu->pid ? 1 : 0;
    if (room < *number) return INSUFFICIENT_SIZE;
    if (gpu->pid) {
        found->pid = gpu->pid;
        found->used = (unsigned long long)gpu->pid_mib << 20;
        found->gpu_instance = found->compute_instance = ~0u;
    }
    return OK;
}
