//! `ilot-keeper`: builds one container and stays its parent; see `ilot_runtime::keeper`.

fn main() {
    std::process::exit(ilot_runtime::keeper::main());
}
