// SPDX-License-Identifier: Apache-2.0
// tap serve NAME FIFO SAID : a tap in a network namespace of its own, as QEMU has one. Does what the lines of
// FIFO
//                            ask for, each answered by a line in SAID:
//                              send COUNT BYTES      frames to the host
//                              gso PAYLOAD SEGMENT   one TCP packet that is still to be cut into segments
//                              take COUNT            frames from the host
//                              down                  the interface
//                              close                 the tap, with what is in its queue
//                              listen                to all that passes it, with room for hardly any
//                              stats                 rx_packets rx_bytes tx_packets tx_bytes tx_dropped
//                              index                 netns ifindex
// tap inject NAME COUNT BYTES : frames to that tap, by anybody else in the namespace.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kFrame = 65536 };
static char frame[sizeof(struct virtio_net_hdr) + kFrame];

static int fail(const char* what) {
  perror(what);
  return 3;
}

static void address(struct ether_header* header) {
  memset(header, 0, sizeof(*header));
  memset(header->ether_dhost, 0x02, ETH_ALEN);
  memset(header->ether_shost, 0x06, ETH_ALEN);
  header->ether_type = htons(0x88b5);  // for experiments
}

static int inject(const char* name, int count, size_t bytes) {
  const int out = socket(AF_PACKET, SOCK_RAW, 0);
  struct sockaddr_ll to = {
      .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(name), .sll_halen = ETH_ALEN};
  if (out < 0 || !to.sll_ifindex) return fail("inject");
  address((struct ether_header*)frame);
  for (int i = 0; i < count; i++) sendto(out, frame, bytes, 0, (struct sockaddr*)&to, sizeof(to));
  return 0;
}

static int send_gso(int tap, unsigned payload, unsigned segment) {
  struct virtio_net_hdr* offload = (struct virtio_net_hdr*)frame;
  struct ether_header* ethernet = (struct ether_header*)(offload + 1);
  struct iphdr* ip = (struct iphdr*)(ethernet + 1);
  struct tcphdr* tcp = (struct tcphdr*)(ip + 1);
  const unsigned headers = sizeof(*ethernet) + sizeof(*ip) + sizeof(*tcp);
  memset(frame, 0, sizeof(*offload) + headers);
  address(ethernet);
  ethernet->ether_type = htons(ETHERTYPE_IP);
  ip->version = 4;
  ip->ihl = 5;
  ip->tot_len = htons((unsigned short)(sizeof(*ip) + sizeof(*tcp) + payload));
  ip->ttl = 1;
  ip->protocol = IPPROTO_TCP;
  ip->saddr = ip->daddr = htonl(0x0a000001);
  tcp->doff = 5;
  offload->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  offload->gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  offload->hdr_len = headers;
  offload->gso_size = segment;
  offload->csum_start = sizeof(*ethernet) + sizeof(*ip);
  offload->csum_offset = offsetof(struct tcphdr, check);
  return write(tap, frame, sizeof(*offload) + headers + payload) < 0;
}

static void say_stats(FILE* said, const char* name) {
  char line[512];
  char format[64];
  unsigned long v[16] = {0};
  FILE* all = fopen("/proc/self/net/dev", "r");
  snprintf(format, sizeof(format), " %s:%%lu%%lu%%lu%%lu%%lu%%lu%%lu%%lu%%lu%%lu%%lu%%lu", name);
  while (all && fgets(line, sizeof(line), all))
    if (sscanf(line, format, v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7, v + 8, v + 9, v + 10,
               v + 11) == 12)
      fprintf(said, "%lu %lu %lu %lu %lu\n", v[1], v[0], v[9], v[8], v[11]);
  if (all) fclose(all);
}

static int set_up(const char* name, int up) {
  struct ifreq request = {.ifr_flags = up ? IFF_UP : 0};
  const int any = socket(AF_INET, SOCK_DGRAM, 0);
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  const int failed = ioctl(any, SIOCSIFFLAGS, &request);
  close(any);
  return failed;
}

static int listen_in(const char* name) {
  const int room = 1;  // the least that the kernel allows
  struct sockaddr_ll at = {
      .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(name)};
  const int in = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
  return in < 0 || setsockopt(in, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room)) ||
         bind(in, (struct sockaddr*)&at, sizeof(at));
}

static int open_tap(const char* name) {
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  const int no_ipv6 = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
  if (no_ipv6 >= 0 && write(no_ipv6, "1", 1) != 1) return -1;  // its own packets would be counted, too
  const int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  if (tap < 0 || ioctl(tap, TUNSETIFF, &request)) return -1;
  if (ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) return -1;
  return set_up(name, 1) ? -1 : tap;
}

static int serve(const char* name, const char* fifo, const char* answers) {
  char line[128];
  if (unshare(CLONE_NEWNET)) return fail("unshare");
  const int tap = open_tap(name);
  if (tap < 0) return fail("tap");
  FILE* said = fopen(answers, "w");
  FILE* asked = fopen(fifo, "r+");
  if (!said || !asked) return fail(answers);
  setvbuf(said, NULL, _IONBF, 0);
  while (fgets(line, sizeof(line), asked)) {
    unsigned a = 0;
    unsigned b = 0;
    int failed = 0;
    memset(frame, 0, sizeof(frame));
    if (sscanf(line, "send %u %u", &a, &b) == 2) {
      address((struct ether_header*)(frame + sizeof(struct virtio_net_hdr)));
      while (a-- && !failed) failed = write(tap, frame, sizeof(struct virtio_net_hdr) + b) < 0;
    } else if (sscanf(line, "gso %u %u", &a, &b) == 2) {
      failed = send_gso(tap, a, b);
    } else if (sscanf(line, "take %u", &a) == 1) {
      while (a-- && !failed) failed = read(tap, frame, sizeof(frame)) < 0;
    } else if (!strcmp(line, "down\n")) {
      failed = set_up(name, 0);
    } else if (!strcmp(line, "listen\n")) {
      failed = listen_in(name);
    } else if (!strcmp(line, "close\n")) {
      failed = close(tap);
    } else if (!strcmp(line, "stats\n")) {
      say_stats(said, name);
      continue;
    } else if (!strcmp(line, "index\n")) {
      struct stat netns;
      stat("/proc/self/ns/net", &netns);
      fprintf(said, "%lu %u\n", (unsigned long)netns.st_ino, if_nametoindex(name));
      continue;
    }
    fprintf(said, failed ? "failed\n" : "done\n");
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 5 && !strcmp(argv[1], "serve")) return serve(argv[2], argv[3], argv[4]);
  if (argc == 5 && !strcmp(argv[1], "inject")) return inject(argv[2], atoi(argv[3]), (size_t)atoi(argv[4]));
  fprintf(stderr, "usage: see the first lines of tap.c\n");
  return 2;
}
