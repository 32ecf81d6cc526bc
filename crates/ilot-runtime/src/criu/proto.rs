//! Protocol buffers, as much of them as CRIU's RPC needs (`images/rpc.proto` of CRIU; wire format:
//! <https://protobuf.dev/programming-guides/encoding/>). A library for this weighs more than all that is said with it.

/// A message under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// An integer or an enumeration's value; negative ones take ten bytes, as the format wants.
    pub fn number(&mut self, field: u32, value: i64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value as u64);
        self
    }

    /// A truth value.
    pub fn flag(&mut self, field: u32, value: bool) -> &mut Self {
        self.number(field, i64::from(value))
    }

    /// A string.
    pub fn text(&mut self, field: u32, value: &str) -> &mut Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message inside this one.
    pub fn message(&mut self, field: u32, value: &Self) -> &mut Self {
        self.bytes(field, &value.0)
    }

    fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The message as it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One field of a message that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer, a truth value or an enumeration's value.
    Number(u64),
    /// A string or a message.
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// The number, as a signed one of 32 bits.
    pub fn int(self) -> Option<i32> {
        match self {
            Self::Number(n) => Some(n as i32),
            Self::Bytes(_) => None,
        }
    }

    /// Whether it is true.
    pub fn is_true(self) -> bool {
        matches!(self, Self::Number(n) if n != 0)
    }

    /// The text, with what is no UTF-8 replaced.
    pub fn text(self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Number(_) => String::new(),
        }
    }
}

/// The fields of a message in their order; `None` if it is broken.
pub fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let field = u32::try_from(key >> 3).ok().filter(|f| *f != 0)?;
        match key & 7 {
            0 => list.push((field, Value::Number(take_varint(&mut bytes)?))),
            1 => drop(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                list.push((field, Value::Bytes(take(&mut bytes, length)?)));
            }
            5 => drop(take(&mut bytes, 4)?),
            _ => return None,
        }
    }
    Some(list)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_formats_own_examples() {
        let mut message = Message::default();
        message.number(1, 150);
        assert_eq!(message.as_bytes(), [0x08, 0x96, 0x01]);
        let mut outer = Message::default();
        outer.message(3, &message).text(2, "testing");
        assert_eq!(outer.as_bytes(), b"\x1a\x03\x08\x96\x01\x12\x07testing");
        let mut negative = Message::default();
        negative.number(1, -2);
        assert_eq!(negative.as_bytes(), [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(fields(negative.as_bytes()).unwrap()[0].1.int(), Some(-2));
    }

    #[test]
    fn broken_messages_are_refused() {
        for bytes in
            [&b"\x08"[..], b"\x0a\x05abc", b"\x00\x01", b"\x0f", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]
        {
            assert_eq!(fields(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(list in proptest::collection::vec((1u32..5000, any::<i64>(), ".{0,300}"), 0..20)) {
            let mut message = Message::default();
            for (field, number, text) in &list {
                message.number(*field, *number).text(*field, text);
            }
            let read = fields(message.as_bytes()).unwrap();
            prop_assert_eq!(read.len(), 2 * list.len());
            for (pair, (field, number, text)) in read.chunks(2).zip(&list) {
                prop_assert_eq!(pair[0], (*field, Value::Number(*number as u64)));
                prop_assert_eq!(pair[1], (*field, Value::Bytes(text.as_bytes())));
            }
        }

        #[test]
        fn nothing_makes_it_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = fields(&bytes);
        }
    }
}
