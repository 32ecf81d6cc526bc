//! Makes system calls by number inside a container and prints each result: `syscall NR[,ARG]*…`.
//! Compiled by the test with `rustc` alone, static.

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn __errno_location() -> *mut i32;
}

fn main() {
    for call in std::env::args().skip(1) {
        let mut n: Vec<i64> = call.split(',').map(|a| a.parse().unwrap()).collect();
        n.resize(7, 0);
        // SAFETY: calls that the filter refuses, or that fail for want of valid arguments.
        let (result, errno) = unsafe {
            *__errno_location() = 0;
            (syscall(n[0], n[1], n[2], n[3], n[4], n[5], n[6]), *__errno_location())
        };
        println!("{} {result} {errno}", call.split(',').next().unwrap());
    }
}
