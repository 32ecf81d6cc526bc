//! Any text: the parser ends, without a panic, within its limits, and every place that it names is in the text.

#![no_main]

use ilot_spec::yaml::{self, MAX_NODES, Node, Span, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parsed = yaml::parse(text, 0);
    // YAML ends lines with `\r` alone as well.
    let lines = u32::try_from(text.split(['\n', '\r']).count()).unwrap_or(u32::MAX).saturating_add(1);
    let inside = |span: Span| assert!((1..=lines.max(1) + 1).contains(&span.line) && span.column >= 1, "{span:?}");
    for error in &parsed.errors {
        assert!(!error.message.is_empty());
        inside(error.span);
    }
    assert!(!parsed.broken || parsed.root.is_none() && !parsed.errors.is_empty());
    if let Some(root) = &parsed.root {
        let mut nodes = 0;
        visit(root, &mut |span| {
            nodes += 1;
            inside(span);
        });
        // Keys count in the parser's limit as well.
        assert!(nodes <= MAX_NODES);
        let _ = root.to_json();
    }
});

fn visit(node: &Node, each: &mut impl FnMut(Span)) {
    each(node.span);
    match &node.value {
        Value::Scalar(_) => {}
        Value::Sequence(items) => items.iter().for_each(|item| visit(item, each)),
        Value::Mapping(entries) => entries.iter().for_each(|entry| visit(&entry.value, each)),
    }
}
