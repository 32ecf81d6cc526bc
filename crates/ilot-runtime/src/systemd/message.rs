//! D-Bus messages as bytes: as much of the specification ("Message Protocol") as talking to systemd takes.

/// Little-endian, version 1.
const ORDER: u8 = b'l';
/// The largest answer that is read. systemd's are some hundred bytes.
const MOST: usize = 1 << 20;

/// Kinds of messages.
pub const CALL: u8 = 1;
/// The answer to a call.
pub const RETURN: u8 = 2;
/// The refusal of a call.
pub const ERROR: u8 = 3;
/// A message to everybody.
pub const SIGNAL: u8 = 4;

/// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `s`
    Text(String),
    /// `b`
    Bool(bool),
    /// `u`
    U32(u32),
    /// `i`
    I32(i32),
    /// `t`
    U64(u64),
    /// `x`
    I64(i64),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Bool(_) => "b",
            Self::U32(_) => "u",
            Self::I32(_) => "i",
            Self::U64(_) => "t",
            Self::I64(_) => "x",
            Self::Bytes(_) => "ay",
            Self::Numbers(_) => "au",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// Values one after the other, each at its alignment.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    /// Adds a text (`s`).
    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    /// Adds a truth value (`b`).
    pub fn bool(mut self, value: bool) -> Self {
        self.signature.push('b');
        put_u32(&mut self.bytes, value.into());
        self
    }

    /// Adds names with values (`a(sv)`).
    pub fn properties(mut self, list: &[(String, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, |bytes| {
            for (name, value) in list {
                align(bytes, 8);
                put_text(bytes, name);
                put_signature(bytes, value.signature());
                put_value(bytes, value);
            }
        });
        self
    }

    /// Adds an empty list of further units (`a(sa(sv))`).
    pub fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, |_| {});
        self
    }
}

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Who answers; a private connection has one peer only.
    pub destination: &'static str,
    /// Object.
    pub path: &'static str,
    /// Interface.
    pub interface: &'static str,
}

/// The bytes of a call.
pub fn call(serial: u32, target: Target, member: &str, body: &Body) -> Vec<u8> {
    let mut out = vec![ORDER, CALL, 0, 1];
    put_u32(&mut out, body.bytes.len() as u32);
    put_u32(&mut out, serial);
    put_array(&mut out, 8, |out| {
        put_field(out, PATH, "o", target.path);
        put_field(out, DESTINATION, "s", target.destination);
        put_field(out, INTERFACE, "s", target.interface);
        put_field(out, MEMBER, "s", member);
        if !body.signature.is_empty() {
            align(out, 8);
            out.push(SIGNATURE);
            put_signature(out, "g");
            put_signature(out, &body.signature);
        }
    });
    align(&mut out, 8);
    out.extend_from_slice(&body.bytes);
    out
}

fn put_field(out: &mut Vec<u8>, code: u8, signature: &str, text: &str) {
    align(out, 8);
    out.push(code);
    put_signature(out, signature);
    put_text(out, text);
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    align(out, 4);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn put_signature(out: &mut Vec<u8>, signature: &str) {
    out.push(signature.len() as u8);
    out.extend_from_slice(signature.as_bytes());
    out.push(0);
}

/// Length, padding to the elements' alignment (not counted), elements.
fn put_array(out: &mut Vec<u8>, alignment: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    put_u32(out, 0);
    let length_at = out.len() - 4;
    align(out, alignment);
    let begin = out.len();
    elements(out);
    let length = (out.len() - begin) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Text(text) => put_text(out, text),
        Value::Bool(value) => put_u32(out, (*value).into()),
        Value::U32(value) => put_u32(out, *value),
        Value::I32(value) => put_u32(out, value.cast_unsigned()),
        Value::U64(value) => {
            align(out, 8);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::I64(value) => {
            align(out, 8);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Bytes(bytes) => put_array(out, 1, |out| out.extend_from_slice(bytes)),
        Value::Numbers(list) => put_array(out, 4, |out| list.iter().for_each(|n| put_u32(out, *n))),
        Value::Texts(list) => put_array(out, 4, |out| list.iter().for_each(|t| put_text(out, t))),
        Value::Pairs(list) => put_array(out, 8, |out| {
            for (a, b) in list {
                align(out, 8);
                put_text(out, a);
                put_text(out, b);
            }
        }),
    }
}

/// What came from the other side.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// [`RETURN`], [`ERROR`], [`SIGNAL`], …
    pub kind: u8,
    /// Which call it answers.
    pub reply_to: u32,
    /// Name of a signal.
    pub member: String,
    /// Name of an error.
    pub error: String,
    /// Types of the body.
    pub signature: String,
    /// The body.
    pub body: Vec<u8>,
}

/// The length of a message by its first 16 bytes; `None` if these begin no message that is understood.
pub fn length(head: &[u8; 16]) -> Option<usize> {
    if head[0] != ORDER || head[3] != 1 {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let total = 16usize.checked_add(word(12).checked_next_multiple_of(8)?)?.checked_add(word(4))?;
    (total <= MOST).then_some(total)
}

/// Takes a whole message apart; `None` if it is malformed.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let head: &[u8; 16] = bytes.first_chunk()?;
    if length(head)? != bytes.len() {
        return None;
    }
    let mut message = Message { kind: head[1], ..Message::default() };
    let mut reader = Reader { bytes, at: 12 };
    let end = reader.u32()? as usize + 16;
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature) {
            (REPLY_SERIAL, "u") => message.reply_to = reader.u32()?,
            (MEMBER, "s") => message.member = reader.text()?.to_owned(),
            (ERROR_NAME, "s") => message.error = reader.text()?.to_owned(),
            (SIGNATURE, "g") => message.signature = reader.signature()?.to_owned(),
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return None,
        }
    }
    message.body = bytes.get(end.next_multiple_of(8)..)?.to_vec();
    Some(message)
}

impl Message {
    /// The texts and paths that the body begins with; numbers between them are passed over.
    pub fn texts(&self) -> Vec<&str> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut list = Vec::new();
        for kind in self.signature.bytes() {
            let done = match kind {
                b's' | b'o' => reader.text().map(|text| list.push(text)),
                b'u' | b'i' | b'b' => reader.u32().map(drop),
                _ => None,
            };
            if done.is_none() {
                break;
            }
        }
        list
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let part = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(part)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?.into();
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { destination: "a.b", path: "/a/b", interface: "a.b.C" };

    #[test]
    fn a_call_as_the_specification_lays_it_out() {
        let bytes = call(7, TARGET, "Do", &Body::default().text("x").bool(true));
        assert_eq!(&bytes[..4], b"l\x01\x00\x01");
        // Body: length 1, `x`, its end, two bytes to align, and the truth value.
        assert_eq!(&bytes[4..8], &12u32.to_le_bytes());
        assert_eq!(&bytes[bytes.len() - 12..], b"\x01\0\0\0x\0\0\0\x01\0\0\0");
        assert_eq!(length(bytes.first_chunk().unwrap()), Some(bytes.len()));
        assert_eq!(&bytes[16..28], b"\x01\x01o\0\x04\0\0\0/a/b");
    }

    /// What we write, we read.
    #[test]
    fn there_and_back() {
        let mut bytes = call(7, TARGET, "JobRemoved", &Body::default().text("a").text("done"));
        bytes[1] = SIGNAL;
        let message = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str(), message.signature.as_str()), (SIGNAL, "JobRemoved", "ss"));
        assert_eq!(message.texts(), ["a", "done"]);
    }

    #[test]
    fn properties_are_aligned() {
        let list = [
            ("MemoryMax".to_owned(), Value::U64(1)),
            ("PIDs".to_owned(), Value::Numbers(vec![2])),
            ("Delegate".to_owned(), Value::Bool(true)),
            ("DeviceAllow".to_owned(), Value::Pairs(vec![("/dev/x".into(), "r".into())])),
            ("AllowedCPUs".to_owned(), Value::Bytes(vec![3])),
        ];
        let body = Body::default().properties(&list).no_units();
        assert_eq!(body.signature, "a(sv)a(sa(sv))");
        // Length, padding, name (4 + 9 + 1 → 14), signature `t` (3 → 17), padding to 24, the number.
        assert_eq!(&body.bytes[8..21], b"\x09\0\0\0MemoryMax");
        assert_eq!(&body.bytes[22..25], b"\x01t\0");
        assert_eq!(&body.bytes[32..40], &1u64.to_le_bytes());
        let length = u32::from_le_bytes(*body.bytes.first_chunk().unwrap()) as usize;
        assert_eq!(
            &body.bytes[(8 + length).next_multiple_of(4)..],
            [0, 0, 0, 0].repeat(body.bytes[8 + length..].len() / 4)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let good = call(1, TARGET, "Do", &Body::default().text("x"));
        for n in 0..good.len() {
            assert!(parse(&good[..n]).is_none(), "{n}");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                // Whatever it says, it is read within its bounds.
                if let Some(message) = parse(&bad) {
                    let _ = message.texts();
                }
            }
        }
        assert!(length(&[0xff; 16]).is_none());
    }
}
