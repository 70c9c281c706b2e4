// SPDX-License-Identifier: Apache-2.0
// switches PREFIX THREADS ROUNDS: threads PREFIX0/KVM, PREFIX1/KVM ... on one CPU pass a token round, so that
// each step is a switch from one of them to the next.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>

struct place {
  char name[16];
  sem_t turn;
  struct place* next;
  long rounds;
};

static void* pass_on(void* argument) {
  struct place* place = argument;

  pthread_setname_np(pthread_self(), place->name);
  for (long i = 0; i < place->rounds; i++) {
    sem_wait(&place->turn);
    sem_post(&place->next->turn);
  }
  return NULL;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int count = atoi(argv[2]);
  struct place* places = calloc((size_t)count, sizeof(*places));
  pthread_t* threads = calloc((size_t)count, sizeof(*threads));
  cpu_set_t one;

  CPU_ZERO(&one);
  CPU_SET(0, &one);
  if (sched_setaffinity(0, sizeof(one), &one)) return 3;
  for (int i = 0; i < count; i++) {
    snprintf(places[i].name, sizeof(places[i].name), "%s%d/KVM", argv[1], i);
    places[i].next = &places[(i + 1) % count];
    places[i].rounds = atol(argv[3]);
    sem_init(&places[i].turn, 0, i == 0);
  }
  for (int i = 0; i < count; i++)
    if (pthread_create(&threads[i], NULL, pass_on, &places[i])) return 4;
  for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
  return 0;
}
