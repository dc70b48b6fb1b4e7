/* A libnvidia-ml.so.1 without a GPU, for the functions that core/doctor/probe.py and nvidia-ml-py's find_gpus call.
   Its state is the file $FAKE_NVML_FILE, read when it is initialised: one line a GPU, `key=value` words that change a healthy
   H100 (temperature=95 ecc_uncorrected=2 reasons=64 lost=1 ...), or one line `init=18` (nvmlInit fails so) or `block`.   */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int R;
typedef void *D;
typedef unsigned long long U64;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15 };

typedef struct {
    U64 temperature, ecc_uncorrected, ecc_corrected, reasons, lost, links, pending, width, persistence, pid, pid_mib, used_mib,
        limit, application, mig;
} Gpu;
static const Gpu healthy = {45, 0, 0, 1, 0, 18, 0, 16, 1, 0, 0, 4, 700000, 1980, 0};
static Gpu gpus[16];
static int count, refused;

static void set(Gpu *gpu, const char *word) {
#define KEY(name) if (!strncmp(word, #name "=", sizeof #name)) gpu->name = strtoull(word + sizeof #name, 0, 10);
    KEY(temperature) KEY(ecc_uncorrected) KEY(ecc_corrected) KEY(reasons) KEY(lost) KEY(links) KEY(pending) KEY(width)
    KEY(persistence) KEY(pid) KEY(pid_mib) KEY(used_mib) KEY(limit) KEY(application) KEY(mig)
}

static void load(void) {
    const char *path = getenv("FAKE_NVML_FILE");
    FILE *file = path ? fopen(path, "r") : 0;
    char line[512];
    count = refused = 0;
    while (file && count < 16 && fgets(line, sizeof line, file)) {
        if (!strncmp(line, "block", 5)) for (;;) sleep(1000);
        if (sscanf(line, "init=%d", &refused) == 1) break;
        gpus[count] = healthy;
        for (char *word = strtok(line, " \n"); word; word = strtok(0, " \n")) set(&gpus[count], word);
        count++;
    }
    if (file) fclose(file);
}

#define GPU(d) Gpu *gpu = &gpus[(int)(long)(d) - 1]; if ((long)(d) < 1 || (long)(d) > count) return INVALID; if (gpu->lost) return LOST
R nvmlInit_v2(void) { load(); return refused; }
R nvmlInitWithFlags(unsigned flags) { load(); return refused; }
R nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(R r) {
    return r == LOST ? "GPU is lost" : r == 18 ? "Driver/library version mismatch" : r == 9 ? "Driver Not Loaded" : "Error";
}
R nvmlSystemGetDriverVersion(char *b, unsigned n) { snprintf(b, n, "580.65.06"); return OK; }
R nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13000; return OK; }
R nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return OK; }
R nvmlDeviceGetHandleByIndex_v2(unsigned i, D *d) { if ((int)i >= count) return INVALID; *d = (D)(long)(i + 1); return gpus[i].lost ? LOST : OK; }
R nvmlDeviceGetName(D d, char *b, unsigned n) { GPU(d); snprintf(b, n, "NVIDIA H100 80GB HBM3"); return OK; }
R nvmlDeviceGetUUID(D d, char *b, unsigned n) { GPU(d); snprintf(b, n, "GPU-%ld", (long)d); return OK; }
typedef struct { U64 total, free, used; } Memory;
R nvmlDeviceGetMemoryInfo(D d, Memory *m) { GPU(d); m->total = 80ull << 30; m->used = gpu->used_mib << 20; m->free = m->total - m->used; return OK; }
R nvmlDeviceGetCudaComputeCapability(D d, int *a, int *b) { GPU(d); *a = 9; *b = 0; return OK; }
typedef struct { unsigned gpu, memory; } Utilization;
R nvmlDeviceGetUtilizationRates(D d, Utilization *u) { GPU(d); u->gpu = u->memory = 0; return OK; }
R nvmlDeviceGetMigMode(D d, unsigned *a, unsigned *b) { GPU(d); *a = *b = gpu->mig; return OK; }
R nvmlDeviceGetTemperature(D d, int s, unsigned *t) { GPU(d); *t = gpu->temperature; return OK; }
R nvmlDeviceGetTemperatureThreshold(D d, int s, unsigned *t) { GPU(d); *t = 87; return OK; }
R nvmlDeviceGetPowerUsage(D d, unsigned *p) { GPU(d); *p = 90000; return OK; }
R nvmlDeviceGetEnforcedPowerLimit(D d, unsigned *p) { GPU(d); *p = gpu->limit; return OK; }
R nvmlDeviceGetPowerManagementDefaultLimit(D d, unsigned *p) { GPU(d); *p = 700000; return OK; }
R nvmlDeviceGetClockInfo(D d, int t, unsigned *c) { GPU(d); *c = 345; return OK; }
R nvmlDeviceGetMaxClockInfo(D d, int t, unsigned *c) { GPU(d); *c = 1980; return OK; }
R nvmlDeviceGetApplicationsClock(D d, int t, unsigned *c) { GPU(d); *c = gpu->application; return OK; }
R nvmlDeviceGetDefaultApplicationsClock(D d, int t, unsigned *c) { GPU(d); *c = 1980; return OK; }
R nvmlDeviceGetCurrentClocksThrottleReasons(D d, U64 *r) { GPU(d); *r = gpu->reasons; return OK; } /* the older name only */
R nvmlDeviceGetEccMode(D d, unsigned *a, unsigned *b) { GPU(d); *a = *b = 1; return OK; }
R nvmlDeviceGetTotalEccErrors(D d, int type, int counter, U64 *c) { GPU(d); *c = type ? gpu->ecc_uncorrected : gpu->ecc_corrected; return OK; }
R nvmlDeviceGetRemappedRows(D d, unsigned *c, unsigned *u, unsigned *p, unsigned *f) { GPU(d); *c = *u = *f = 0; *p = gpu->pending; return OK; }
R nvmlDeviceGetPersistenceMode(D d, int *m) { GPU(d); *m = gpu->persistence; return OK; }
R nvmlDeviceGetCurrPcieLinkWidth(D d, unsigned *w) { GPU(d); *w = gpu->width; return OK; }
R nvmlDeviceGetMaxPcieLinkWidth(D d, unsigned *w) { GPU(d); *w = 16; return OK; }
R nvmlDeviceGetCurrPcieLinkGeneration(D d, unsigned *w) { GPU(d); *w = 1; return OK; }
R nvmlDeviceGetMaxPcieLinkGeneration(D d, unsigned *w) { GPU(d); *w = 5; return OK; }
R nvmlDeviceGetNvLinkState(D d, unsigned link, unsigned *s) { GPU(d); if (link >= 18) return INVALID; *s = link < gpu->links; return OK; }
R nvmlDeviceGetNvLinkErrorCounter(D d, unsigned link, int c, U64 *v) { GPU(d); *v = 0; return OK; }
typedef struct { unsigned pid; U64 memory; unsigned gi, ci; } Process;
R nvmlDeviceGetComputeRunningProcesses_v3(D d, unsigned *n, Process *p) {
    GPU(d);
    *n = gpu->pid ? 1 : 0;
    if (gpu->pid) { p->pid = gpu->pid; p->memory = gpu->pid_mib << 20; }
    return OK;
}
