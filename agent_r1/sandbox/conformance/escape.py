"""Hostile programs that reach for the host: its files, processes, network and kernel."""

from __future__ import annotations

from typing import Final

from agent_r1.sandbox.base import Executor, RunStatus
from agent_r1.sandbox.conformance.cases import (
    Case,
    Feature,
    denied,
    describe,
    held,
    run,
    syscall_denied,
)

_ISOLATED: Final = frozenset({Feature.ISOLATION})


def _kill_everything(executor: Executor) -> None:
    run(executor, "import os, signal; os.kill(-1, signal.SIGKILL)")
    after = run(executor, "print('alive')")
    assert after.status is RunStatus.SUCCESS and after.stdout == "alive\n", describe(after)


def _kill_parent(executor: Executor) -> None:
    run(executor, "import os\nfor p in (1, os.getppid()):\n    os.kill(p, 9)")
    after = run(executor, "print('alive')")
    assert after.status is RunStatus.SUCCESS and after.stdout == "alive\n", describe(after)


FILES: Final = (
    denied("read_shadow", "the host's password hashes are not there", "open('/etc/shadow')"),
    held(
        "host_users",
        "the host's user list is not there",
        "names = [line.split(':')[0] for line in open('/etc/passwd')]\n"
        "print('breach' if {'daemon', 'nobody', 'bin'} & set(names) else 'held')",
    ),
    denied("list_root_home", "root's home shows no dot files", "open('/root/.bashrc')"),
    denied("list_home", "no home directories", "import os; assert os.listdir('/home')"),
    denied("list_var", "no /var", "import os; assert os.listdir('/var')"),
    denied("list_sys", "no /sys", "import os; assert os.listdir('/sys')"),
    denied("list_boot", "no /boot", "import os; assert os.listdir('/boot')"),
    denied(
        "write_library", "the standard library is read-only", "open(__import__('os').__file__, 'a')"
    ),
    denied("write_root", "the root is read-only", "open('/owned', 'w')"),
    denied("write_etc", "/etc is read-only", "open('/etc/passwd', 'a')"),
    denied("write_bin", "programs are read-only", "open('/usr/bin/env', 'a')"),
    denied("make_dir_usr", "/usr takes no folders", "import os; os.mkdir('/usr/owned')"),
    denied("chmod_binary", "modes cannot be changed", "import os; os.chmod('/usr/bin/env', 0o777)"),
    denied("device_mem", "no physical memory", "open('/dev/mem', 'rb')"),
    denied("device_kmsg", "no kernel log", "open('/dev/kmsg')"),
    denied("device_kvm", "no virtualisation device", "open('/dev/kvm', 'r+b')"),
    denied(
        "device_disk",
        "no disks",
        "import glob; open(sorted(glob.glob('/dev/[svn][dv]*'))[0], 'rb')",
    ),
    denied(
        "make_device", "no device nodes", "import os; os.mknod('d', 0o60600, os.makedev(254, 0))"
    ),
    denied("proc_kcore", "no kernel memory", "open('/proc/kcore', 'rb').read(8)"),
    denied("proc_sysrq", "no system requests", "open('/proc/sysrq-trigger', 'w').write('b')"),
    denied(
        "proc_sys",
        "no kernel settings",
        "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/true')",
    ),
    denied("chroot_dotdot", "no way above the root", "import os; os.chroot('/tmp')"),
)

PROCESSES: Final = (
    held(
        "other_processes",
        "only the program's own processes are visible",
        "import os\npids = {int(p) for p in os.listdir('/proc') if p.isdigit()}\n"
        "own = {os.getpid(), 1}\nprint('breach' if pids - own else 'held')",
    ),
    denied(
        "init_environment", "init's environment is hidden", "open('/proc/1/environ', 'rb').read(1)"
    ),
    denied("init_memory", "init's memory is hidden", "open('/proc/1/mem', 'r+b').read(1)"),
    denied(
        "init_descriptors", "init's descriptors are hidden", "import os; os.listdir('/proc/1/fd')"
    ),
    denied("init_maps", "init's layout is hidden", "assert open('/proc/1/maps').read(1)"),
    Case("kill_everything", "kill(-1) ends only itself", _kill_everything, _ISOLATED, True),
    Case("kill_parent", "its parent cannot be killed", _kill_parent, _ISOLATED, True),
    syscall_denied("ptrace_parent", "no tracing", "call(101, 117, 16, os.getppid(), 0, 0)"),
    syscall_denied("ptrace_me", "not even of itself", "call(101, 117, 0, 0, 0, 0)"),
    syscall_denied("read_memory", "no memory of others", "call(310, 270, 1, 0, 0, 0, 0, 0)"),
    syscall_denied("steal_descriptor", "no descriptors of others", "call(438, 438, 3, 0, 0)"),
    denied(
        "limit_init",
        "limits of other processes stay",
        "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    ),
    denied("pin_init", "nobody else's processors", "import os; os.sched_setaffinity(1, {0})"),
    denied("renice_all", "nobody else's priority", "import os; os.setpriority(2, 0, 19)"),
    denied("raise_priority", "no higher priority", "import os; os.nice(-5)"),
    denied(
        "realtime",
        "no real-time scheduling",
        "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    ),
    denied(
        "lower_oom_score",
        "not spared when memory ends",
        "with open('/proc/self/oom_score_adj', 'w') as f: f.write('-900')",
    ),
    held(
        "environment",
        "no variable of the host",
        "import os\n"
        "known = 'PATH HOME USER LANG TMPDIR LC_CTYPE MPLBACKEND PWD SHLVL _'.split()\n"
        "stray = [k for k in os.environ if k not in known and not k.endswith('_THREADS')\n"
        "         and not k.startswith(('PYTHON', 'MALLOC', 'GLIBC'))]\n"
        "print('breach' if stray else 'held', stray)",
    ),
    held(
        "descriptors",
        "no descriptor but the standard three",
        "import os\nopen_ones = []\nfor fd in range(3, 512):\n    try:\n        os.fstat(fd)\n"
        "        open_ones.append(fd)\n    except OSError:\n        pass\n"
        "print('breach' if open_ones else 'held', open_ones)",
    ),
)

NETWORK: Final = (
    held(
        "connect_loopback",
        "nothing listens on the program's own loopback",
        "import socket\nopen_ones = []\nfor port in (22, 25, 53, 80, 111, 443, 631, 8080, 8265):\n"
        "    with socket.socket() as s:\n        s.settimeout(1)\n"
        "        if s.connect_ex(('127.0.0.1', port)) == 0:\n            open_ones.append(port)\n"
        "print('breach' if open_ones else 'held', open_ones)",
    ),
    denied(
        "connect_internet",
        "no address outside",
        "s.connect(('8.8.8.8', 53))",
        setup="import socket\ns = socket.socket(); s.settimeout(1)",
    ),
    denied(
        "connect_metadata",
        "no cloud metadata",
        "s.connect(('169.254.169.254', 80))",
        setup="import socket\ns = socket.socket(); s.settimeout(1)",
    ),
    denied(
        "resolve_name", "no name service", "import socket; socket.getaddrinfo('example.com', 80)"
    ),
    denied(
        "raw_socket",
        "no raw sockets",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    ),
    denied(
        "packet_socket", "no packet sockets", "import socket; socket.socket(17, socket.SOCK_RAW, 3)"
    ),
    denied(
        "vsock", "no way to a hypervisor", "import socket; socket.socket(40, socket.SOCK_STREAM)"
    ),
    held(
        "interfaces",
        "no interface but a loopback of its own",
        "import socket\nnames = [n for _, n in socket.if_nameindex()]\n"
        "usual = {'lo', 'sit0', 'tunl0', 'ip6tnl0', 'gre0', 'gretap0', 'erspan0'}\n"
        "print('breach' if set(names) - usual else 'held', names)",
    ),
)

KERNEL: Final = (
    syscall_denied("mount", "no mounts", "call(165, 40, b'none', b'/tmp', b'tmpfs', 0, 0)"),
    syscall_denied("unmount", "mounts stay", "call(166, 39, b'/proc', 2)"),
    syscall_denied("new_mount_api", "nor by the new way", "call(430, 430, b'tmpfs', 0)"),
    syscall_denied("unshare_user", "no new user namespace", "call(272, 97, 0x10000000)"),
    syscall_denied(
        "clone_user", "nor by clone", "call(56, 220, 0x10000011, 0, 0, 0, 0) or os._exit(0)"
    ),
    syscall_denied(
        "setns", "no other namespace", "call(308, 268, os.open('/proc/self/ns/pid', 0), 0)"
    ),
    syscall_denied("pivot_root", "no other root", "call(155, 41, b'/tmp', b'/tmp')"),
    syscall_denied("become_root", "no other user", "os.setuid(0) if os.getuid() else 1 / 0"),
    syscall_denied("become_group", "no other groups", "os.setgroups([0])"),
    syscall_denied("module", "no kernel modules", "call(175, 105, 0, 0, b'')"),
    syscall_denied("reboot", "no reboot", "call(169, 142, 0xfee1dead, 672274793, 0x89ABCDEF, 0)"),
    syscall_denied("bpf", "no bpf", "call(321, 280, 0, ctypes.create_string_buffer(72), 72)"),
    syscall_denied(
        "io_uring", "no io_uring", "call(425, 425, 1, ctypes.create_string_buffer(120))"
    ),
    syscall_denied("userfaultfd", "no userfaultfd", "call(323, 282, 1)"),
    syscall_denied(
        "perf", "no perf events", "call(298, 241, ctypes.create_string_buffer(112), 0, -1, -1, 0)"
    ),
    syscall_denied("key_ring", "no key rings", "call(250, 219, 0, -3, 1)"),
    syscall_denied(
        "kernel_log", "no kernel log", "call(103, 116, 3, ctypes.create_string_buffer(9), 9)"
    ),
    syscall_denied("set_clock", "no clock", "call(227, 112, 0, ctypes.create_string_buffer(16))"),
    syscall_denied("host_name", "no host name", "import socket; socket.sethostname('owned')"),
    syscall_denied("set_xattr", "no attributes that stay", "os.setxattr('/tmp', 'user.x', b'1')"),
    syscall_denied("shared_memory", "no System V memory", "call(29, 194, 1, 4096, 0o1777)"),
    syscall_denied("message_queue", "no message queues", "call(240, 180, b'q', 0o102, 0o600, 0)"),
    syscall_denied("unknown_call", "calls of the future do not exist", "call(461, 461, 0)"),
    syscall_denied("x32_call", "no second call table", "call(0x40000027, 9999)"),
    held(
        "no_new_privileges",
        "a set-uid program gains nothing",
        "status = open('/proc/self/status').read()\nimport re\n"
        "caps = re.findall(r'Cap(?:Prm|Eff|Bnd|Amb):\\s+(\\w+)', status)\n"
        "locked = 'NoNewPrivs:\\t1' in status and 'Seccomp:\\t2' in status\n"
        "print('held' if locked and not any(int(c, 16) for c in caps) else 'breach', caps)",
    ),
)

CASES: Final = (*FILES, *PROCESSES, *NETWORK, *KERNEL)
