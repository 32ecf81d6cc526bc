//! Obtains an image into a store and unpacks it: `obtain STORE REFERENCE [TRUST]`.

use std::path::Path;
use std::time::Instant;

use ilot_image::{Progress, Store};

struct Lines;

impl Progress for Lines {
    fn stage(&self, text: &str) {
        eprintln!("> {text}");
    }

    fn bytes(&self, _done: u64, _total: Option<u64>) {}

    fn note(&self, text: &str) {
        eprintln!("! {text}");
    }

    fn finished(&self) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, reference, rest @ ..] = arguments.as_slice() else {
        return Err("usage: obtain STORE REFERENCE [TRUST]".into());
    };
    let start = Instant::now();
    let store = Store::open(Path::new(root))?;
    let image = store.obtain(reference, &Lines).map_err(|e| format!("{e}\nhelp: {}", e.help().unwrap_or_default()))?;
    eprintln!("obtained in {:?}", start.elapsed());
    println!("{image:#?}");
    if let [trust, ..] = rest {
        let start = Instant::now();
        let lowers = store.materialize_with(&image, trust, &Lines)?;
        eprintln!("unpacked in {:?}: {lowers:?}", start.elapsed());
    }
    Ok(())
}
