"""Programs: graded by their tests, and confined."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from salt_jax.graders import Grader, GraderError, GraderPool, confine, syscalls
from salt_jax.graders.code import parse_reference, run_tests
from salt_jax.graders.folders import remove_folder

FULL = pytest.mark.skipif(bool(confine.missing()), reason=f"this machine lacks {confine.missing()}")
TESTS = json.dumps({"tests": ["assert f(1) == 2", "assert f(-1) == 0"]})
RIGHT = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def pool():
    arguments = {"time_limit": 1, "wall_limit": 4, "memory_mib": 512}
    with GraderPool(Grader("salt_jax.graders.code:run_tests", arguments), workers=2, deadline=30) as pool:
        yield pool


def rewards(pool: GraderPool, programs: list[str], reference: str = TESTS) -> list[float]:
    grades = pool.grade(programs, [reference] * len(programs))
    assert grades.errors.count == 0, grades.errors
    assert grades.answers == (None,) * len(programs)
    return grades.rewards.tolist()


# --- verdicts ---


@FULL
def test_a_program_passes_with_all_its_tests(pool):
    programs = {
        RIGHT: 1.0,
        f"Here:\n```python\n{RIGHT}```\nas asked.": 1.0,
        "def f(x):\n    return 2\n": 0.0,  # passes the first test only
        "def f(x): return 1 / 0": 0.0,
        "def g(x): return x + 1": 0.0,
        "def f(x:": 0.0,
        "": 0.0,
        "I do not know.": 0.0,
        "(" * 100_000: 0.0,
        "x = 1\0": 0.0,
        "x = '\ud800'": 0.0,
    }
    assert rewards(pool, list(programs)) == list(programs.values())


@FULL
@pytest.mark.parametrize(
    "ending",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import os; os.write(3, b'+' * 17); os._exit(0)",
        "import os; [os.write(1, b'1.0') for i in range(9)]; os._exit(0)",
        "import os; os.write(3, b'-'); os._exit(0)",
        "import os; os.close(3)",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
        "raise KeyboardInterrupt",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
        "input()",
        "import atexit",
    ],
)
def test_an_ending_is_no_verdict(pool, ending):
    expected = 1.0 if ending == "import atexit" else 0.0  # the control: a program that ends as it should
    assert rewards(pool, [f"{RIGHT}\n{ending}"]) == [expected]


@FULL
def test_processor_time_and_memory_are_the_programs_own_fault(pool):
    programs = ["while True: pass", "x = bytearray(1 << 30)", "x = [0]\nwhile True: x += x"]
    assert rewards(pool, programs) == [0.0, 0.0, 0.0]


WAITING = {
    "deadlock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "deadlock of threads": """
import threading
locks, met = [threading.Lock(), threading.Lock()], threading.Barrier(2)
def hold(a, b):
    with a:
        met.wait()
        with b: pass
threads = [threading.Thread(target=hold, args=pair) for pair in (locks, locks[::-1])]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "sleep": "import time; time.sleep(60)",
    "a pipe of its own": "import os; os.read(os.pipe()[0], 1)",
    "an event loop": "import asyncio; asyncio.run(asyncio.Event().wait())",
    "stopped": "import signal; signal.raise_signal(signal.SIGSTOP)",
}


@FULL
def test_a_program_that_waits_for_itself_fails():
    arguments = {"time_limit": 1, "wall_limit": 0.5}
    with GraderPool(Grader("salt_jax.graders.code:run_tests", arguments), workers=2, deadline=30) as pool:
        programs = [f"{RIGHT}\n{waiting}" for waiting in WAITING.values()]
        assert rewards(pool, [*programs, RIGHT]) == [0.0] * len(programs) + [1.0]
        assert pool.restarts == 0


@FULL
def test_a_program_that_is_kept_waiting_goes_on():
    arguments = {"time_limit": 1, "wall_limit": 0.2}
    with GraderPool(Grader("tests.graders.misbehaving:kept_waiting", arguments), workers=1) as pool:
        assert rewards(pool, [RIGHT + "import time; time.sleep(0.8)"]) == [1.0]


@FULL
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"setup": "import collections.nothing"}, "ValueError: the setup of the reference fails: ModuleNotFoundError"),
        ({"setup": "raise SystemExit"}, "ValueError: no program passes"),
        ({"setup": "[][0]"}, "ValueError: the setup of the reference fails: IndexError: list index out of range"),
        ({"setup": "while [1]: pass"}, "ChildProcessError: the process ended or waited before the program began"),
        ({"tests": "c = []\nfor x in c:\n    assert f(x) == 2"}, "ValueError: the tests of the reference pass"),
        ({"tests": "g = lambda: f(1)\nassert g"}, "ValueError: the tests of the reference pass without a program"),
        ({"tests": "assert [f(1) == 2] * 2"}, "ValueError: the tests of the reference pass without a program"),
    ],
)  # fmt: skip
def test_a_reference_that_is_of_no_use_is_a_missing_reward(pool, reference, message):
    grades = pool.grade([RIGHT], [json.dumps({"tests": ["assert f(1) == 2"], "entry_point": "f"} | reference)])
    assert not grades.rewarded[0]
    assert grades.errors.first.startswith(message), grades.errors.first


@FULL
@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (RIGHT, "assert f(1)"),
        (RIGHT, "assert not f(-1)"),
        ("def f(x): return None", "assert f(1) is None"),
        ("def f(x): return x", "assert f(f) == f"),
        ("def f(x): raise ValueError", "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False"),
        (RIGHT, "assert f(1) != 3"),
        (RIGHT, "assert f(2) == f(2)"),
        ("class f:\n    def g(self): return 1", "assert f().g() == 1"),
    ],
)
def test_tests_that_see_whether_there_is_a_program(pool, program, tests):
    assert rewards(pool, [program], json.dumps({"tests": tests})) == [1.0]


@FULL
def test_a_setup_that_uses_the_program_runs_after_it(pool):
    reference = {"setup": "from typing import List\nroot = Node(1)", "tests": "assert height(root) == [1]"}
    program = "class Node:\n    def __init__(self, x): self.x = x\ndef height(n: Node) -> List[int]: return [n.x]"
    assert rewards(pool, [program], json.dumps(reference)) == [1.0]


HUMANEVAL = {
    "prefix": 'from typing import List\n\ndef one() -> int:\n    return 1\n\ndef f(x: int) -> int:\n    """Adds."""\n',
    "tests": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "f",
}


@FULL
@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("    return x + one()\n", 1.0),
        ("    return x\n", 0.0),
        ("```python\ndef f(x: List) -> int:\n    return x + one()\n```", 1.0),  # the prompt's import and helper
        ("```python\n    return x + 1\n```", 1.0),
        ("def f(x):\n    return x\n\ndef check(f):\n    pass\n", 0.0),
    ],
)
def test_humaneval(pool, completion, reward):
    assert rewards(pool, [completion], json.dumps(HUMANEVAL)) == [reward]


@FULL
def test_setup_and_ordinary_libraries(pool):
    reference = json.dumps({"setup": "import math\nK = 3", "tests": "assert f(1) == 4 == math.floor(4.5)"})
    program = """
        import asyncio, collections, dataclasses, decimal, heapq, json, os, random, re, tempfile, threading, typing
        @dataclasses.dataclass
        class Point:
            x: "int"
        with tempfile.TemporaryDirectory() as folder:
            open(os.path.join(folder, "a"), "w").write("1")
        open("here", "w").write("1")
        assert os.listdir() == ["here"]
        seen = []
        thread = threading.Thread(target=seen.append, args=(1,))
        thread.start()
        thread.join()
        async def g(x): return Point(x).x + K
        def f(x): return asyncio.run(g(x))
    """
    assert rewards(pool, [textwrap.dedent(program)], reference) == [1.0]


@FULL
def test_verdicts_repeat(pool, subprocess_env):
    """Neither the order of a set nor an unseeded generator differs from one time to the next."""
    command = [sys.executable, "-c", "print(hash('a'))"]
    env = subprocess_env | {"PYTHONHASHSEED": "0"}
    seen = int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    program = "import random\nfound = hash('a'), random.random()"
    tests = f"import random\nassert found == ({seen}, random.Random(0).random())"
    assert rewards(pool, [program] * 6, json.dumps({"tests": tests})) == [1.0] * 6


# --- confinement: each act is tried outside (it works), then inside (it does not) ---

OUTSIDE = "OUTSIDE"  # stands for a folder of the test's
ACTS = {
    "write": "open('OUTSIDE/new', 'w').write('x')",
    "append": "open('OUTSIDE/file', 'a').write('x')",
    "truncate": "import os; os.truncate('OUTSIDE/file', 0)",
    "open to truncate": "import os; os.open('OUTSIDE/file', os.O_RDONLY | os.O_TRUNC)",
    "read": "open('OUTSIDE/file').read()",
    "list": "import os; os.listdir('OUTSIDE')",
    "list the parent": "import os; os.listdir('..')",
    "remove": "import os; os.remove('OUTSIDE/file')",
    "rename": "import os; os.rename('OUTSIDE/file', 'OUTSIDE/new')",
    "make a folder": "import os; os.mkdir('OUTSIDE/new')",
    "link out": "import os; os.link('OUTSIDE/file', 'new')",
    "follow a link": "import os; os.symlink('OUTSIDE/file', 'new'); open('new').read()",
    "permissions": "import os; os.chmod('OUTSIDE/file', 0o777)",
    "times": "import os; os.utime('OUTSIDE/file', (0, 0))",
    "environment of the worker": "open(f'/proc/{__import__(\"os\").getppid()}/environ').read()",
    "memory of itself by file": "open('/proc/self/mem', 'rb').read(0)",
    "tcp": "import socket; socket.socket()",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "vfork and exec": "import subprocess; subprocess.run(['true'], check=True)",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "signal": "import os; os.kill(os.getppid(), 0)",
    "signal to all of the group": "import os, signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); os.kill(0, 10)",
    "signal by a file's owner": "import os, fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "session": "import os\nos.setsid() if os.getpid() != os.getpgid(0) else os.setpgid(0, os.getppid())",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (7, 7))",
    "limits of another": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "priority": "import os; os.nice(1) and os.setpriority(os.PRIO_PROCESS, 0, 5)",
    "trace": "import ctypes, os\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0) == -1: raise OSError",
    "large file": "open('new', 'wb').write(bytes(1 << 25))",
}


def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("secret")
    os.chmod(folder / "file", 0o600)
    return folder


@FULL
@pytest.mark.parametrize("act", ACTS)
def test_acts_that_are_refused(pool, act, tmp_path):
    folder = outside(tmp_path)
    before = os.stat(folder / "file")
    program = ACTS[act].replace(OUTSIDE, str(folder))
    assert rewards(pool, [f"{RIGHT}\n{program}"]) == [0.0]
    after = os.stat(folder / "file")
    assert (folder / "file").read_text() == "secret"
    assert os.listdir(folder) == ["file"]
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (before.st_mode, before.st_mtime, 1)


# What these do outside says nothing: they depend on the machine's network, owner or parent.
NOT_TRIED = {
    "environment of the worker", "exec", "signal to all of the group", "limits", "session", "limits of another",
}  # fmt: skip


@pytest.mark.parametrize("act", sorted(set(ACTS) - NOT_TRIED))
def test_the_same_acts_are_possible_unconfined(act, tmp_path, subprocess_env):
    """Or a refusal would say nothing."""
    folder = outside(tmp_path)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    program = ACTS[act].replace(OUTSIDE, str(folder))
    command = [sys.executable, "-I", "-W", "ignore", "-c", program]
    run = subprocess.run(command, cwd=cwd, env=subprocess_env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@FULL
def test_every_denied_call_is_denied(pool):
    """By its number, with arguments that no call takes for good; clone3 does not exist, so that libc uses clone."""
    here = syscalls.machine()
    numbers = {name: pair[here.column] for name, pair in syscalls.DENIED.items() if pair[here.column] is not None}
    assert len(numbers) > 90
    program = f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        def outcome(number, *arguments):
            result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
            return errno.errorcode[ctypes.get_errno()] if result == -1 else result
        wrong = {{name: outcome(n, -1, -1, -1, -1, -1) for name, n in {numbers}.items()}}
        assert set(wrong.values()) == {{"EPERM"}}, wrong
        assert outcome({here.clone3}, 0, 0) == "ENOSYS"
        assert outcome({here.clone}, 17, 0, 0, 0, 0) == "EPERM"  # SIGCHLD: a process, not a thread
        assert outcome({here.prlimit64}, 0, 4, 0, 0) == 0  # to read a limit
        assert outcome({here.prlimit64}, 0, 4, 1, 0) == "EPERM"
    """
    assert rewards(pool, [RIGHT + textwrap.dedent(program)]) == [1.0]


@FULL
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 has two more tables of calls")
def test_a_call_by_another_table_ends_the_program(pool):
    call = "import ctypes, os\nctypes.CDLL(None).syscall(ctypes.c_long({number}))"
    x32, native = call.format(number=0x40000000 + 39), call.format(number=39)  # getpid
    assert rewards(pool, [f"{RIGHT}\n{x32}", f"{RIGHT}\n{native}"]) == [0.0, 1.0]


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_the_kernel_headers(column):
    lines = (Path(__file__).parent / "linux_syscalls.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    numbers = {name: pair[column] for name, *pair in rows if pair[column] != "-"}
    named = {name: pair[column] for name, pair in syscalls.DENIED.items()}
    here = list(syscalls.MACHINES.values())[column]
    asked_more_of = ("clone", "clone3", "kill", "tgkill", "fcntl", "prlimit64", "prctl")
    named |= {name: getattr(here, name) for name in asked_more_of}
    named |= {"landlock_create_ruleset": here.landlock_create, "landlock_restrict_self": here.landlock_restrict}
    known = {name: number for name, number in named.items() if name in numbers}
    assert len(known) > 90
    assert known == {name: int(numbers[name]) for name in known}
    assert [name for name, number in named.items() if number is None and name in numbers] == []


@FULL
def test_a_program_that_deceives_its_own_tests_is_not_found_out(pool):
    """What the module says is not protected, so that nobody takes it for protected."""
    equal_to_all = "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()"
    assert rewards(pool, [equal_to_all]) == [1.0]


@FULL
def test_a_refused_act_is_an_ordinary_error(pool):
    """The program may go on: EPERM or EACCES, as where a file is simply not one's own."""
    program = RIGHT + "import socket\ntry: socket.socket()\nexcept PermissionError: pass\nelse: raise ValueError"
    assert rewards(pool, [program]) == [1.0]


@FULL
def test_no_environment_no_descriptors_no_input(pool):
    program = RIGHT + textwrap.dedent("""
        import os, sys
        assert set(os.environ) == {"PATH", "HOME", "TMPDIR", "LANG"}, os.environ
        assert os.environ["HOME"] == os.getcwd() and os.listdir() == []
        assert sys.stdin.read() == ""
        print("x" * 10_000_000)
        for descriptor in range(4, 64):
            try: os.fstat(descriptor)
            except OSError: continue
            raise ValueError(descriptor)
    """)
    assert rewards(pool, [program]) == [1.0]


@FULL
def test_a_folder_of_any_depth_and_permission_is_removed(pool):
    deep = RIGHT + "import os\nfor i in range(60):\n    os.mkdir('d' * 100); os.chdir('d' * 100)\n"  # past PATH_MAX
    odd = RIGHT + "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close(); os.mkdir('closed', 0)\n"
    empty = RIGHT + "import os\nassert os.listdir() == []"
    assert rewards(pool, [deep, odd, RIGHT, RIGHT] * 3 + [empty] * 8) == [1.0] * 20
    folders = [folder for worker in pool._workers for folder in Path(worker.folder).iterdir()]
    assert len(folders) <= 2, "one a worker"
    assert [list(folder.iterdir()) for folder in folders] == [[] for _ in folders]


def test_remove_folder_follows_no_link(tmp_path):
    inside, other = tmp_path / "inside", tmp_path / "other"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "moved-1").mkdir()
    (inside / "moved-1").write_text("x")
    other.mkdir(0o755)
    (other / "file").write_text("x")
    (inside / "a" / "link").symlink_to(other, target_is_directory=True)
    (inside / "a" / "b").chmod(0)
    (inside / "a").chmod(0)
    remove_folder(str(inside))
    assert not inside.exists()
    assert (other / "file").read_text() == "x"
    assert other.stat().st_mode & 0o777 == 0o755
    remove_folder(str(inside))


def test_a_machine_without_protections_refuses_in_one_line(monkeypatch):
    monkeypatch.setattr(confine, "missing", lambda: ["Landlock 3 (Linux 6.2 or newer)", "seccomp filters"])
    with pytest.raises(GraderError, match="lacks Landlock 3 .*; seccomp filters: .* sandbox='limits'") as caught:
        confine.check("full")
    assert "\n" not in str(caught.value)
    confine.check("limits")
    with pytest.raises(GraderError, match="sandbox = 'none' is unknown; allowed: full, limits"):
        confine.check("none")


def test_missing_names_each_protection(monkeypatch):
    monkeypatch.setattr(syscalls, "machine", lambda: None)
    assert len(confine.missing()) == 3
    monkeypatch.undo()
    if syscalls.machine() is not None:
        monkeypatch.setattr(confine, "landlock_abi", lambda: 1)
        assert any("Landlock 3 (Linux 6.2 or newer, and enabled; here 1)" in line for line in confine.missing())


def test_with_limits_alone_the_limits_hold():
    arguments = {"sandbox": "limits", "time_limit": 1, "wall_limit": 5, "memory_mib": 512}
    programs = [RIGHT, "while True: pass", RIGHT + "import os; os.listdir('/')", RIGHT + "x = bytearray(1 << 30)"]
    expected = [1.0, 0.0, 1.0, 0.0 if sys.platform == "linux" else 1.0]
    with GraderPool(Grader("salt_jax.graders.code:run_tests", arguments), workers=2, deadline=30) as pool:
        assert rewards(pool, programs) == expected


def test_a_process_with_threads_does_not_fork():
    """This one, where JAX has started its own."""
    import jax

    jax.numpy.ones(3).block_until_ready()
    with pytest.raises(GraderError, match=r"programs are graded in a GraderPool: this process has \d+ threads"):
        run_tests(RIGHT, TESTS, sandbox="limits")


# --- references and texts ---


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("[]", "no JSON object with keys among setup, tests, entry_point, prefix"),
        ('{"tests": "pass", "test": 1}', "no JSON object with keys among"),
        ("{}", "the reference has no tests: any program would pass"),
        ('{"tests": ["", " "]}', "has no tests"),
        ('{"tests": 3}', "tests = 3 of the reference has the wrong type"),
        ('{"tests": "assert f", "prefix": null}', "prefix = None of the reference has the wrong type"),
        ("{", "Expecting property name"),
    ],
)
def test_references_that_are_none(reference, message):
    with pytest.raises(ValueError, match=message):
        parse_reference(reference)
