// What must happen before libtorch registers its operators, which takes a sixth of a second and comes before `main`: the
// loader calls what is in `.preinit_array` before the initialisers of all libraries.

#include <cerrno>
#include <csignal>
#include <initializer_list>
#include <unistd.h>

namespace {

bool nowhere = false;
volatile sig_atomic_t handled = 0;

// Later handlers call this one too.
void end(int) {
  if (handled == 0) _exit(130);
}

void early(int, char**, char**) {
  // oneMKL ends the process where the current folder was removed.
  char path[4096];
  nowhere = getcwd(path, sizeof path) == nullptr && errno == ENOENT && chdir("/") == 0;
  for (int number : {SIGINT, SIGTERM}) {
    struct sigaction action = {};
    if (sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) {
      action.sa_handler = end;
      sigaction(number, &action, nullptr);
    }
  }
}

__attribute__((section(".preinit_array"), used)) void (*const first)(int, char**, char**) = early;

}  // namespace

// Whether the current folder of the process was removed before it began.
extern "C" int lx_started_nowhere() { return nowhere; }

// From here on SIGINT and SIGTERM are the business of others.
extern "C" void lx_leave_signals() { handled = 1; }
