//! A thread of a running process, made to end in the ways in which a thread can end. The process, its other threads and the
//! program are the real ones. A thread's first tracer is its last: [`Traced`] stays on the thread that made it.

use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command};

use nix::{
    libc::{self, user_regs_struct as Registers},
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Functions of a program.
pub struct Symbols(Vec<Function>);

struct Function {
    /// Where it is in the file.
    start: u64,
    size: u64,
    name: String,
}

impl Symbols {
    /// Empty if the program is stripped or there is no `nm`.
    pub fn of(program: &Path) -> Self {
        let output = Command::new("nm").args(["-C", "-S"]).arg(program).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        let functions = String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| {
                let mut words = line.splitn(4, ' ');
                let start = u64::from_str_radix(words.next()?, 16).ok()?;
                let size = u64::from_str_radix(words.next()?, 16).ok()?;
                let name = words.nth(1)?.to_owned();
                Some(Function { start, size, name })
            })
            .collect();
        Self(functions)
    }

    /// Where the functions of this name begin, and where they end.
    pub fn named(&self, name: &str) -> Vec<std::ops::Range<u64>> {
        self.0
            .iter()
            .filter(|function| function.name == name)
            .map(|function| function.start..function.start + function.size)
            .collect()
    }
}

/// A stopped thread of another process.
pub struct Traced {
    process: u32,
    thread: Pid,
    memory: File,
    /// Where the program begins in memory.
    base: u64,
}

impl Traced {
    /// Stops a thread.
    pub fn stop(process: u32, thread: Pid) -> Self {
        ptrace::attach(thread).unwrap();
        let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{process}/mem"))
            .unwrap();
        let base = mapping(process, "/ringwall").start;
        Self {
            process,
            thread,
            memory,
            base,
        }
    }

    /// The thread is gone from now on, as if it had never been: no destructor runs and no other thread is told.
    pub fn vanish(self) {
        let vdso = mapping(self.process, "[vdso]");
        let mut code = vec![0; (vdso.end - vdso.start) as usize];
        self.memory.read_exact_at(&mut code, vdso.start).unwrap();
        let syscall = code.windows(2).position(|bytes| bytes == [0x0f, 0x05]).unwrap();
        let mut registers = self.registers();
        registers.rip = vdso.start + syscall as u64;
        registers.rax = libc::SYS_exit as u64;
        registers.orig_rax = u64::MAX; // nothing that was interrupted goes on
        registers.rdi = 0;
        self.go(registers);
    }

    /// The thread panics where it would have begun this function, as on an `unwrap` of None. False if the program has no
    /// such functions.
    pub fn panic_in(self, symbols: &Symbols, function: &str) -> bool {
        let (entries, panic) = (
            symbols.named(function),
            symbols.named("core::option::unwrap_failed"),
        );
        let Some(panic) = panic.first() else { return false };
        let base = self.base;
        let at_entry =
            |registers: &Registers| entries.iter().any(|entry| base + entry.start == registers.rip);
        if entries.is_empty() {
            return false;
        }
        let mut registers = self.step_until(at_entry);
        // What the panic says about its place: a `core::panic::Location`, far below what the stack is used for.
        let (name, place) = (registers.rsp - 0x4_0000, registers.rsp - 0x4_1000);
        self.memory.write_all_at(b"a test\0", name).unwrap();
        let words = [name, 6, 1 << 32 | 1];
        for (place, word) in (place..).step_by(8).zip(words) {
            self.memory.write_all_at(&word.to_ne_bytes(), place).unwrap();
        }
        registers.rip = base + panic.start;
        registers.rdi = place;
        self.go(registers);
        true
    }

    /// The thread finds true where `function` next looks at an atomic flag. False if the program has no such functions.
    pub fn raise_flag_of(self, symbols: &Symbols, function: &str) -> bool {
        let (callers, loads) = (
            symbols.named(function),
            symbols.named("core::sync::atomic::AtomicBool::load"),
        );
        if callers.is_empty() || loads.is_empty() {
            return false;
        }
        let base = self.base;
        let caller = |stack: u64| {
            let mut word = [0; 8];
            self.memory.read_exact_at(&mut word, stack).unwrap();
            u64::from_ne_bytes(word)
        };
        let mut registers = self.step_until(|registers| {
            loads.iter().any(|load| base + load.start == registers.rip)
                && callers
                    .iter()
                    .any(|range| range.contains(&(caller(registers.rsp) - base)))
        });
        registers.rip = caller(registers.rsp);
        registers.rsp += 8;
        registers.rax = 1;
        self.go(registers);
        true
    }

    fn registers(&self) -> Registers {
        ptrace::getregs(self.thread).unwrap()
    }

    /// Goes on, one instruction after the other, until the next is the one.
    fn step_until(&self, reached: impl Fn(&Registers) -> bool) -> Registers {
        for _ in 0..10_000_000 {
            let registers = self.registers();
            if reached(&registers) {
                return registers;
            }
            ptrace::step(self.thread, None).unwrap();
            let stepped = waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap();
            assert!(matches!(stepped, WaitStatus::Stopped(..)), "{stepped:?}");
        }
        panic!("the thread does not come there");
    }

    /// Lets it go on from here, without a tracer.
    fn go(self, registers: Registers) {
        ptrace::setregs(self.thread, registers).unwrap();
        ptrace::detach(self.thread, None).unwrap();
    }
}

/// The first mapping of a file whose name ends like this.
fn mapping(process: u32, name: &str) -> std::ops::Range<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let line = maps
        .lines()
        .find(|line| line.ends_with(name) || line.ends_with(&format!("{name} (deleted)")))
        .unwrap_or_else(|| panic!("nothing of {name} is mapped"));
    let (range, _) = line.split_once(' ').unwrap();
    let (start, end) = range.split_once('-').unwrap();
    u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
}
