/* The peak of this processor's fused multiply-add: twelve chains in registers on every thread, no memory.
   Prints operations a second. Arguments: threads, millions of rounds. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12

typedef float vec __attribute__((vector_size(BYTES)));

static long rounds;
static volatile float sink;

static void *work(void *ignored) {
    (void)ignored;
    vec acc[CHAINS], a, b;
    for (int lane = 0; lane < (int)(BYTES / sizeof(float)); lane++) {
        a[lane] = 0.999999f;
        b[lane] = 1e-6f;
        for (int chain = 0; chain < CHAINS; chain++) acc[chain][lane] = (float)chain;
    }
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; chain++) acc[chain] = acc[chain] * a + b;
    }
    float sum = 0;
    for (int chain = 0; chain < CHAINS; chain++) sum += acc[chain][0];
    sink = sum;
    return NULL;
}

int main(int count, char **values) {
    int threads = count > 1 ? atoi(values[1]) : 1;
    rounds = 1000000L * (count > 2 ? atol(values[2]) : 100);
    pthread_t *ids = malloc(sizeof(pthread_t) * (size_t)threads);
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, work, NULL);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    printf("%.6e\n", 2.0 * CHAINS * (BYTES / sizeof(float)) * (double)rounds * threads / seconds);
    free(ids);
    return 0;
}
