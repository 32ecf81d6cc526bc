//! Many containers from one process at once, with many descriptors open.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Machine, host_can};
use ilot_runtime::{Status, delete};

#[test]
fn side_by_side() {
    if !host_can() {
        return;
    }
    // Descriptors of ours stand everywhere that a helper could look for its own.
    let _open: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let machines: Vec<Machine> = (0..12).map(|_| Machine::new(&[])).collect();
    std::thread::scope(|scope| {
        for machine in &machines {
            scope.spawn(|| {
                machine.up();
                assert_eq!(machine.status(), Some(Status::Running));
            });
        }
    });
    for machine in &machines {
        assert_eq!(machine.exec(&["cat", "/proc/1/comm"]).1, "ilot-init\n");
    }
    std::thread::scope(|scope| {
        for machine in &machines {
            scope.spawn(|| delete(&machine.run_dir(), true).unwrap());
        }
    });
}
