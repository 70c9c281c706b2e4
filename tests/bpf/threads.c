// SPDX-License-Identifier: Apache-2.0
// threads NAME:MS[:CPU]... : a thread each of this name that runs for so long (on this CPU), all at once.
// Prints of each "NAME ns on a CPU, ns from its begin to its end", then those of the whole process as
// "process".
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct job {
  char name[16];
  long long run_ns;
  int cpu;
  long long ran_ns;
  long long lived_ns;
};

static pthread_barrier_t all_there;

static long long now_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void* work(void* argument) {
  struct job* job = argument;
  cpu_set_t set;

  pthread_setname_np(pthread_self(), job->name);
  if (job->cpu >= 0) {
    CPU_ZERO(&set);
    CPU_SET(job->cpu, &set);
    if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set)) abort();
  }
  pthread_barrier_wait(&all_there);
  long long begin_ns = now_ns(CLOCK_MONOTONIC);
  while (now_ns(CLOCK_THREAD_CPUTIME_ID) < job->run_ns) continue;
  job->lived_ns = now_ns(CLOCK_MONOTONIC) - begin_ns;
  job->ran_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
  return NULL;
}

int main(int argc, char** argv) {
  int count = argc - 1;
  struct job* jobs = calloc((size_t)count, sizeof(*jobs));
  pthread_t* threads = calloc((size_t)count, sizeof(*threads));

  pthread_barrier_init(&all_there, NULL, (unsigned)count);
  for (int i = 0; i < count; i++) {
    long long ms = 0;
    jobs[i].cpu = -1;
    if (sscanf(argv[i + 1], "%15[^:]:%lld:%d", jobs[i].name, &ms, &jobs[i].cpu) < 2) return 2;
    jobs[i].run_ns = ms * 1000000;
    if (pthread_create(&threads[i], NULL, work, &jobs[i])) return 3;
  }
  for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < count; i++) printf("%s:%lld:%lld\n", jobs[i].name, jobs[i].ran_ns, jobs[i].lived_ns);
  printf("process:%lld:0\n", now_ns(CLOCK_PROCESS_CPUTIME_ID));
  free(jobs);
  free(threads);
  return 0;
}
