//! The little of DNS messages (RFC 1035, 6891) that a forwarder with a few own names needs.
//!
//! A query's header and question are read; everything else passes through unread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of the header.
pub const HEADER: usize = 12;
/// The largest name on the wire.
const MAX_NAME: usize = 255;
/// How long clients may keep our own answers, in seconds: machines come and go.
const TTL: u32 = 10;
/// The UDP size that we offer (the DNS flag day of 2020's).
const UDP_SIZE: u16 = 1232;

/// Record types.
pub mod kind {
    #![allow(missing_docs, reason = "the names of RFC 1035 and its successors")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const DNSKEY: u16 = 48;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const ANY: u16 = 255;
}

/// Classes.
pub mod class {
    #![allow(missing_docs, reason = "the names of RFC 1035")]
    pub const IN: u16 = 1;
    pub const CHAOS: u16 = 3;
    pub const ANY: u16 = 255;
}

/// Response codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The name exists.
    NoError = 0,
    /// The query does not parse.
    FormErr = 1,
    /// No upstream answered.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// Not a query.
    NotImp = 4,
    /// Not answered on principle.
    Refused = 5,
}

/// A query's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The client's number.
    pub id: u16,
    /// The name in lower case, dots between labels, none at the end; bytes that no name of ours has are `?`.
    pub name: String,
    /// Number of labels.
    pub labels: usize,
    /// The type.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// Where the question ends.
    pub end: usize,
    /// Whether the client speaks EDNS.
    pub edns: bool,
}

/// A message that is no query that we could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// Best not answered at all: too short, or itself an answer.
    Ignore,
    /// Answered with this code, without a question.
    Answer(Code),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a query.
pub fn parse(bytes: &[u8]) -> Result<Query, Bad> {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Err(Bad::Ignore);
    }
    if bytes[2] & 0x78 != 0 {
        return Err(Bad::Answer(Code::NotImp));
    }
    question(bytes).ok_or(Bad::Answer(Code::FormErr))
}

fn question(bytes: &[u8]) -> Option<Query> {
    if u16_at(bytes, 4)? != 1 || u16_at(bytes, 6)? != 0 {
        return None;
    }
    let mut at = HEADER;
    let mut name = String::new();
    let mut labels = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // No pointers: there is nothing before the first name that it could point to.
        if length > 63 {
            return None;
        }
        if labels > 0 {
            name.push('.');
        }
        name.extend(bytes.get(at..at + length)?.iter().map(|&byte| plain(byte)));
        at += length;
        labels += 1;
        if at - HEADER >= MAX_NAME {
            return None;
        }
    }
    let (kind, class) = (u16_at(bytes, at)?, u16_at(bytes, at + 2)?);
    let end = at + 4;
    let additional = u16_at(bytes, 8)? == 0 && u16_at(bytes, 10)? == 1;
    let edns = additional && bytes.get(end) == Some(&0) && u16_at(bytes, end + 1) == Some(kind::OPT);
    Some(Query { id: u16_at(bytes, 0)?, name, labels, kind, class, end, edns })
}

fn plain(byte: u8) -> char {
    match byte.to_ascii_lowercase() {
        c @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => char::from(c),
        _ => '?',
    }
}

/// An own record in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A name.
    Ptr(String),
    /// A text of at most 255 bytes.
    Txt(String),
}

/// Answers a query from what we know ourselves.
pub fn reply(bytes: &[u8], query: &Query, code: Code, records: &[Record]) -> Vec<u8> {
    let mut out = header(bytes, code, true);
    out[5] = 1;
    out[7] = records.len() as u8;
    out.extend_from_slice(&bytes[HEADER..query.end]);
    for record in records {
        // The name is the question's: a pointer to it.
        out.extend_from_slice(&[0xc0, HEADER as u8]);
        let (kind, data) = match record {
            Record::A(address) => (kind::A, address.octets().to_vec()),
            Record::Aaaa(address) => (kind::AAAA, address.octets().to_vec()),
            Record::Ptr(name) => (kind::PTR, encode(name)),
            Record::Txt(text) => {
                let text = &text.as_bytes()[..text.len().min(255)];
                (kind::TXT, [&[text.len() as u8], text].concat())
            }
        };
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&query.class.to_be_bytes());
        out.extend_from_slice(&TTL.to_be_bytes());
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(&data);
    }
    if query.edns {
        out[11] = 1;
        out.push(0);
        out.extend_from_slice(&kind::OPT.to_be_bytes());
        out.extend_from_slice(&UDP_SIZE.to_be_bytes());
        out.extend_from_slice(&[0; 6]);
    }
    out
}

/// Answers with a code alone, for a message whose question is not to be trusted.
pub fn refuse(bytes: &[u8], code: Code) -> Vec<u8> {
    header(bytes, code, false)
}

/// The header of an answer without any record. `bytes` has at least a header.
fn header(bytes: &[u8], code: Code, authoritative: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(&bytes[..2]);
    // An answer; operation and "recursion desired" as asked; recursion available.
    let flags = 0x80 | (bytes[2] & 0x79) | if authoritative { 0x04 } else { 0 };
    out.extend_from_slice(&[flags, 0x80 | code as u8]);
    out.extend_from_slice(&[0; 8]);
    out
}

fn encode(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|l| !l.is_empty() && l.len() <= 63) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// Whether `answer` answers `query` (both whole messages): the same number and the same question.
pub fn answers(answer: &[u8], query: &[u8], end: usize) -> bool {
    let same_question = || match (answer.get(HEADER..end), query.get(HEADER..end)) {
        (Some(a), Some(q)) => a.eq_ignore_ascii_case(q),
        _ => false,
    };
    // An error may come back without the question.
    let bare = answer.len() == HEADER && answer[4..6] == [0, 0] && answer[3] & 0x0f != 0;
    answer.len() >= HEADER
        && answer[2] & 0x80 != 0
        && answer[..2] == query[..2]
        && (bare || (answer[4..6] == [0, 1] && same_question()))
}

/// The addresses of the asked type ([`kind::A`], [`kind::AAAA`]) that an answer gives for its question's name, directly or by
/// way of other names, and for how many seconds they are good. What does not parse ends the list.
pub fn addresses(answer: &[u8], asked: &Query) -> Vec<(IpAddr, u32)> {
    let mut names = vec![asked.name.clone()];
    let mut found = Vec::new();
    let mut at = asked.end;
    for _ in 0..u16_at(answer, 6).unwrap_or(0) {
        let Some((owner, next)) = name_at(answer, at) else { break };
        let fixed = (u16_at(answer, next), u16_at(answer, next + 2), u16_at(answer, next + 8));
        let (Some(kind), Some(class), Some(length)) = fixed else { break };
        let data_at = next + 10;
        let Some(data) = answer.get(data_at..data_at + usize::from(length)) else { break };
        at = data_at + usize::from(length);
        if class != class::IN || !names.contains(&owner) {
            continue;
        }
        let address = match kind {
            kind::A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            kind::AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        match (kind, address) {
            (_, Some(address)) if kind == asked.kind => {
                let ttl: [u8; 4] = answer[next + 4..next + 8].try_into().unwrap_or_default();
                // The highest bit set means none (RFC 2181, 8).
                let ttl = u32::from_be_bytes(ttl);
                found.push((address, if ttl > i32::MAX as u32 { 0 } else { ttl }));
            }
            (kind::CNAME, _) => names.extend(name_at(answer, data_at).map(|(target, _)| target)),
            _ => {}
        }
    }
    found
}

/// The name at a place, pointers followed, as [`Query::name`] has it; and where it ends.
fn name_at(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut end = None;
    let mut length_of_all = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(bytes.get(at + 1..at + 1 + length)?.iter().map(|&byte| plain(byte)));
                at += 1 + length;
                length_of_all += 1 + length;
                if length_of_all >= MAX_NAME {
                    return None;
                }
            }
            _ => {
                let target = usize::from(u16_at(bytes, at)? & 0x3fff);
                end = end.or(Some(at + 2));
                // Backwards only: so it ends.
                if length & 0xc0 != 0xc0 || target >= at {
                    return None;
                }
                at = target;
            }
        }
    }
}

/// The response code of an answer that is at least a header long.
pub fn code_of(answer: &[u8]) -> u8 {
    answer[3] & 0x0f
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(encode(name));
        bytes.extend(kind.to_be_bytes());
        bytes.extend(class::IN.to_be_bytes());
        bytes
    }

    #[test]
    fn reads_a_query() {
        let bytes = query("Web.Pro.ilot", kind::A);
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.name.as_str(), parsed.labels, parsed.kind, parsed.id), ("web.pro.ilot", 3, 1, 0x1234));
        assert_eq!(parsed.end, bytes.len());
        assert!(!parsed.edns);
        let mut edns = bytes.clone();
        edns[11] = 1;
        edns.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert!(parse(&edns).unwrap().edns);
    }

    #[test]
    fn refuses_what_is_no_query() {
        let good = query("a", kind::A);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            parse(&bytes).unwrap_err()
        };
        assert_eq!(parse(&[]), Err(Bad::Ignore));
        assert_eq!(parse(&good[..11]), Err(Bad::Ignore));
        assert_eq!(with(&|b| b[2] |= 0x80), Bad::Ignore);
        assert_eq!(with(&|b| b[2] |= 0x28), Bad::Answer(Code::NotImp));
        assert_eq!(with(&|b| b[5] = 0), Bad::Answer(Code::FormErr));
        assert_eq!(with(&|b| b[5] = 2), Bad::Answer(Code::FormErr));
        assert_eq!(with(&|b| b[12] = 0xc0), Bad::Answer(Code::FormErr));
        assert_eq!(with(&|b| b.truncate(16)), Bad::Answer(Code::FormErr));
        let long = ["abcdefghijklmnopqrstuvwxyz"; 10].join(".");
        assert_eq!(parse(&query(&long, kind::A)), Err(Bad::Answer(Code::FormErr)));
    }

    #[test]
    fn a_label_with_a_dot_is_no_two_labels() {
        let mut bytes = query("aXb", kind::A);
        bytes[14] = b'.';
        assert_eq!(parse(&bytes).unwrap().name, "a?b");
    }

    /// An answer to a query: records as owner (a name, or none for a pointer to the question), type, time to live, data.
    fn answer(query: &[u8], records: &[(Option<&str>, u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = query.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = records.len() as u8;
        for (owner, kind, ttl, data) in records {
            bytes.extend(owner.map_or(vec![0xc0, 12], encode));
            bytes.extend(kind.to_be_bytes());
            bytes.extend(class::IN.to_be_bytes());
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    #[test]
    fn the_addresses_of_an_answer() {
        let asked = query("www.example.org", kind::A);
        let good = answer(
            &asked,
            &[
                (None, kind::CNAME, 300, encode("cdn.example.net")),
                (Some("other.example"), kind::A, 60, vec![192, 0, 2, 9]),
                (Some("CDN.example.net"), kind::A, 60, vec![192, 0, 2, 1]),
                (Some("cdn.example.net"), kind::A, u32::MAX, vec![192, 0, 2, 2]),
                (None, kind::TXT, 60, vec![1, b'x']),
            ],
        );
        let question = parse(&asked).unwrap();
        let found = addresses(&good, &question);
        assert_eq!(found, [([192, 0, 2, 1].into(), 60), ([192, 0, 2, 2].into(), 0)]);
        assert_eq!(addresses(&good[..good.len() - 40], &question).len(), 1);
        assert_eq!(addresses(&good, &Query { kind: kind::AAAA, ..question.clone() }), []);
        let asked6 = query("www.example.org", kind::AAAA);
        let six = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let good6 = answer(
            &asked6,
            &[
                (None, kind::A, 60, vec![192, 0, 2, 1]),
                (None, kind::AAAA, 60, six.octets().to_vec()),
                (None, kind::AAAA, 60, vec![1, 2, 3, 4]),
            ],
        );
        assert_eq!(addresses(&good6, &parse(&asked6).unwrap()), [(six.into(), 60)]);
        // A pointer to itself.
        let mut bad = answer(&asked, &[(None, kind::A, 60, vec![192, 0, 2, 1])]);
        let at = asked.len();
        bad[at..at + 2].copy_from_slice(&(0xc000 | at as u16).to_be_bytes());
        assert_eq!(addresses(&bad, &question), []);
    }

    #[test]
    fn answers_match_by_number_and_question() {
        let asked = query("example.com", kind::A);
        let mut answer = asked.clone();
        answer[2] |= 0x80;
        assert!(answers(&answer, &asked, asked.len()));
        answer[13] = b'E';
        assert!(answers(&answer, &asked, asked.len()));
        answer[13] = b'x';
        assert!(!answers(&answer, &asked, asked.len()));
        assert!(!answers(&asked, &asked, asked.len()), "a query is no answer");
        assert!(!answers(&answer[..5], &asked, asked.len()));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(query) = parse(&bytes) {
                prop_assert!(query.end <= bytes.len());
                let out = reply(&bytes, &query, Code::NoError, &[Record::A([10, 0, 0, 1].into()), Record::Aaaa(Ipv6Addr::LOCALHOST)]);
                prop_assert!(out.len() < 512);
                prop_assert!(answers(&out, &bytes, query.end));
            }
            let _ = answers(&bytes, &query("a", kind::A), 19);
            for kind in [kind::A, kind::AAAA] {
                let _ = addresses(&bytes, &parse(&query("a", kind)).unwrap());
            }
        }

        #[test]
        fn nearly_right_bytes_never_panic(at in 0usize..60, value: u8, cut in 12usize..60) {
            let mut bytes = query("web.pro.ilot", kind::A);
            bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(cut);
            if let Ok(query) = parse(&bytes) {
                let _ = reply(&bytes, &query, Code::NxDomain, &[]);
            }
        }
    }
}
