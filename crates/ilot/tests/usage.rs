//! Arguments, exit codes, and how failures are told.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::io::Read;
use std::process::Stdio;

use common::Place;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_definition_is_sound() {
    ilot::cli::command().debug_assert();
}

#[test]
fn wrong_arguments_are_exit_code_2() {
    let place = Place::new();
    for args in [&["nonesuch"][..], &["check", "--nonesuch"], &["exec", "web"], &["stop", "-t", "soon", "web"], &[]] {
        let ran = place.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert_eq!(ran.out, "", "{args:?}");
    }
    assert_eq!(place.run(&["--help"]).ok().err, "");
    assert!(place.run(&["help", "exec"]).ok().out.contains("Usage: ilot exec"));
    assert!(place.run(&["--version"]).ok().out.starts_with("ilot "));
}

#[test]
fn arguments_are_understood_as_docker_and_incus_users_write_them() {
    for line in [
        "ilot exec web ls -l /",
        "ilot exec web -- ls -l /",
        "ilot exec web -it sh",
        "ilot exec -it web sh -c true",
        "ilot exec -i -t -e A=b -u root -w / web -- env",
        "ilot run --rm -it busybox sh",
        "ilot run --rm busybox ls -l /",
        "ilot run -d --name web --net lab -m 512m --cpus 0.5 busybox httpd -f -p 80",
        "ilot logs -f -n 10 --since 10m web",
        "ilot -f lab.yml plan --only a --only b",
        "ilot plan -f lab.yml --detailed-exitcode --json",
        "ilot apply -y -vv",
        "ilot ps -aq",
        "ilot rm -f one two",
        "ilot stop -t 0 web",
        "ilot cp web:/etc/hosts .",
        "ilot --root /s --run /r -q rm --force one",
        "ilot --root /s --run-dir /r -q rm --force one",
    ] {
        let parsed = ilot::cli::Cli::read(line.split(' '));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn a_failure_is_told_in_text_and_in_json() {
    let place = Place::new();
    let ran = place.run(&["check", "--json"]);
    assert_eq!(ran.code, 1);
    assert!(ran.json()["error"]["message"].as_str().unwrap().starts_with("no project here"));
    assert_eq!(ran.json()["error"]["hints"].as_array().unwrap().len(), 2);
    assert!(ran.err.starts_with("error: no project here"), "{}", ran.err);
}

#[test]
fn exec_and_run_fail_with_125_before_there_is_a_command() {
    let place = Place::new();
    assert_eq!(place.run(&["exec", "nonesuch", "true"]).code, 125);
    assert_eq!(place.run(&["shell", "nonesuch"]).code, 125);
    let ran = place.run(&["run", "-t", "busybox"]);
    assert_eq!(ran.code, 125);
    if is_root() {
        assert!(ran.err.contains("not a terminal"), "{}", ran.err);
    }
}

#[test]
fn nobody_to_ask_is_a_failure_with_its_cure() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let place = Place::new();
    place.run(&["init", "-q"]).ok();
    let ran = place.run(&["apply"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.ends_with(" hint: `ilot apply --yes` does it without asking\n"), "{}", ran.err);
}

#[test]
fn names_that_nothing_has_are_told_with_the_nearest() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let place = Place::new();
    place.run(&["init", "-q"]).ok();
    let ran = place.run(&["plan", "--only", "work-wb"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "error: `work-wb` is neither a domain nor a machine of this project\n hint: did you mean `work-web`?\n"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let mut child =
        place.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
}

#[test]
fn a_broken_file_stops_a_change_with_its_problems() {
    let place = Place::new();
    place.write(
        "infra.yml",
        "project_name: lab\nglobal: {addressing: {base_octet: 10}}\ndomains: {pro: {machines: {web: {type: lxcc}}}}\n",
    );
    for command in ["plan", "apply", "destroy"] {
        let ran = place.run(&[command]);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains("infra.yml:3:40"), "{}", ran.err);
        assert!(ran.err.contains("error: `infra.yml` has 1 error: nothing was changed\n"), "{}", ran.err);
    }
}
