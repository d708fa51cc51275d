// Runs a list of operations, each by all threads of a crew: one call from Python a step.
//
// Threads spin between two operations, which follow each other in microseconds, and sleep between
// two programs, as the cores are also those of the scheduler and the server.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "op.h"

using namespace pds;

namespace {

constexpr int SPINS = 4000;       // of a pause each: some 50 us, then the core is offered to others
constexpr int SPINS_ASLEEP = 400;

struct Instruction {
  Op* op;
  const void* arguments;
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  Pool(int members, bool pinned) : members_(members) {
    for (int member = 1; member < members; member++)
      threads_.emplace_back([this, member] { serve(member); });
    if (pinned) pin();
  }

  ~Pool() {
    stopped_ = true;
    began_.fetch_add(1, std::memory_order_release);
    began_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void run(const Instruction* program, int64_t length, const Step* step) {
    program_ = program, length_ = length, step_ = step;
    next_.store(0, std::memory_order_relaxed);
    if (members_ > 1) {
      began_.fetch_add(1, std::memory_order_release);
      began_.notify_all();
    }
    work(0);
  }

 private:
  void serve(int member) {
    uint32_t seen = 0;
    while (true) {
      for (int spin = 0; began_.load(std::memory_order_acquire) == seen; spin++) {
        if (spin < SPINS_ASLEEP) pause();
        else began_.wait(seen, std::memory_order_acquire);
      }
      seen++;
      if (stopped_) return;
      work(member);
    }
  }

  void work(int member) {
    Crew crew{member, members_, &next_};
    // `program_` may be another one as soon as the last barrier is passed
    const Instruction* program = program_;
    const Step* step = step_;
    for (int64_t at = 0, length = length_; at < length; at++) {
      program[at].op(program[at].arguments, step, &crew);
      if (members_ > 1) meet();
      else next_.store(0, std::memory_order_relaxed);
    }
  }

  void meet() {
    uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; spin++) {
      if (spin < SPINS) pause();
      else sched_yield();
    }
  }

  // One core each, where the process may use just as many as it has members: more would have to be
  // chosen, and others may have chosen the same.
  void pin() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != members_) return;
    int member = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      if (member > 0) pthread_setaffinity_np(threads_[member - 1].native_handle(), sizeof one, &one);
      member++;
    }
  }

  const int members_;
  std::vector<std::thread> threads_;
  const Instruction* program_ = nullptr;
  int64_t length_ = 0;
  const Step* step_ = nullptr;
  bool stopped_ = false;
  alignas(64) std::atomic<uint32_t> began_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace

PDS_OP void* pds_pool(int members, int pinned) { return new Pool(members, pinned); }
PDS_OP void pds_pool_end(void* pool) { delete static_cast<Pool*>(pool); }
PDS_OP void pds_run(void* pool, const Instruction* program, int64_t length, const Step* step) {
  static_cast<Pool*>(pool)->run(program, length, step);
}
