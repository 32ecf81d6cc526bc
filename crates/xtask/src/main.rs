//! `cargo xtask`: what cargo alone cannot do for this project.
//!
//! `build` makes two builds, because two kinds of programs are needed: `ilot`, an ordinary one, and the small static ones
//! that stay in memory or become process 1 of a container (`ilot-keeper`, `ilot-names`, …). Both end in `target/dist`.

mod bench;
mod bench_apply;
mod bench_build;
mod bench_floor;
mod bench_images;
mod bench_incus;
mod bench_peers;
mod bench_plan;
mod bench_runtime;
mod bench_startup;
mod build;
mod cgroup2;
mod check_docs;
mod check_markdown;
mod conformance;
mod vm;
mod vm_image;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  build [--debug]      everything into target/dist: bin/ilot, libexec/ilot/…
  static               only the static programs, into target/dist/libexec/ilot
  install [PREFIX]     target/dist into PREFIX (default: /usr/local)
  bench [WHAT]         startup, apply, plan, build, images, runtime or all (as root): medians beside peers where they are
  conformance [NAME]   the runtime-spec on a runtime (a name or a path; $RUNTIME; else ilot-oci), as root
  test --cgroup2 [--debug] [--plain|--systemd] [NAME…]
                       tests of control groups in a virtual machine with cgroup v2 (QEMU, mmdebstrap; root or sudo);
                       RUNTIME=crun or runc: the conformance suite on that one, as Debian 12 has it
  check-docs           links, anchors and indexes of every .md file
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["build"] => build::all(true),
        ["build", "--debug"] => build::all(false),
        ["static"] => build::static_programs(true),
        ["install"] => build::install("/usr/local"),
        ["install", prefix] => build::install(prefix),
        ["bench"] => bench::run("all"),
        ["bench", what] => bench::run(what),
        // What a bench starts to take its samples; not for typing.
        ["bench-worker", command @ ..] => bench_peers::worker(command),
        ["conformance"] => conformance::run(None),
        ["conformance", runtime] => conformance::run(Some(runtime)),
        ["test", rest @ ..] => cgroup2::Options::parse(rest).and_then(|options| cgroup2::run(&options)),
        ["check-docs"] => check_docs::run(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
