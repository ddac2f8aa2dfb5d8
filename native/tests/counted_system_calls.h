// Counts a process's system calls from now on, all threads', and refuses them; for a child that ends soon.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace {
std::atomic<int64_t> num_system_calls{0};
std::atomic<int> last_system_call{-1};

void refuse(int, siginfo_t* info, void* context) {
  ++num_system_calls;
  last_system_call = info->si_syscall;
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  machine.gregs[REG_RAX] = -ENOSYS;
#elif defined(__aarch64__)
  machine.regs[0] = static_cast<unsigned long long>(-ENOSYS);
#endif
}

// Whether the system lets a process do so. What ends the process and what ends a signal's handler goes on
// working; and, with `but_waits`, what a thread calls that has long waited for another: yield, sleep, wake.
bool refuse_system_calls(bool but_waits) {
  struct sigaction action = {};
  action.sa_sigaction = refuse;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGSYS, &action, nullptr) != 0) return false;
  const auto jump_if = [](unsigned number, uint8_t skip) {
    return sock_filter{BPF_JMP | BPF_JEQ | BPF_K, skip, 0, number};
  };
  const auto wait = [&](unsigned number) { return but_waits ? number : SYS_exit_group; };
  sock_filter filter[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      jump_if(SYS_rt_sigreturn, 5),
      jump_if(SYS_exit_group, 4),
      jump_if(wait(SYS_sched_yield), 3),
      jump_if(wait(SYS_futex), 2),
      jump_if(wait(SYS_clock_gettime), 1),  // where the clock cannot be read from memory
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_TRAP},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog program{sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return false;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}
}  // namespace
