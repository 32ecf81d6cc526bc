//! What stands in the kernel: asked through nfnetlink, without a process.

use std::io;

use sha2::{Digest, Sha256};

use super::egress;
use super::render::TABLE;
use crate::netlink::{Message, Socket, attributes, text_of};

/// `NFNL_SUBSYS_NFTABLES`, as the high byte of a message type.
const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
/// Requests and attributes of `linux/netfilter/nf_tables.h`.
const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
const DELETE_TABLE: u16 = NFTABLES | libc::NFT_MSG_DELTABLE as u16;
const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;
const GET_SET: u16 = NFTABLES | libc::NFT_MSG_GETSET as u16;
const GET_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_GETSETELEM as u16;
const GET_GENERATION: u16 = NFTABLES | libc::NFT_MSG_GETGEN as u16;
const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const RULE_TABLE: u16 = 1;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
/// `NFTA_SET_COUNT`, since Linux 6.17, and what newer kernels may have behind it.
const SET_COUNT: u16 = 20;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const GENERATION_ID: u16 = 1;
/// `NFTNL_UDATA_TABLE_COMMENT` of libnftnl.
const COMMENT: u8 = 0;

/// The families that have a table of ours.
const FAMILIES: [u8; 2] = [libc::NFPROTO_INET as u8, libc::NFPROTO_BRIDGE as u8];
/// Length of `struct nfgenmsg`; its last two bytes are a part of the generation.
const HEADER: usize = 4;

fn header(family: u8) -> [u8; HEADER] {
    [family, 0, 0, 0]
}

/// The number of the last transaction in this network namespace, anyone's.
pub fn generation(socket: &mut Socket) -> io::Result<u32> {
    let message = Message::new(GET_GENERATION, 0, &header(0));
    let found = socket.get(message, |payload| {
        let (_, value) = attributes(payload.get(HEADER..)?).find(|(kind, _)| *kind == GENERATION_ID)?;
        Some(u32::from_be_bytes(value.try_into().ok()?))
    })?;
    found.ok_or_else(|| io::Error::other("no generation"))
}

/// The comments of our tables, `inet` and `bridge`; `None` for one that does not stand.
pub fn comments(socket: &mut Socket) -> io::Result<[Option<String>; 2]> {
    let mut found = [None, None];
    for (family, found) in FAMILIES.iter().zip(&mut found) {
        *found = comment(socket, *family)?;
    }
    Ok(found)
}

/// The comment of our table of a family; `None` where it does not stand.
pub fn comment(socket: &mut Socket, family: u8) -> io::Result<Option<String>> {
    let mut message = Message::new(GET_TABLE, 0, &header(family));
    message.text(TABLE_NAME, TABLE);
    socket.get(message, |payload| {
        let userdata = attributes(payload.get(HEADER..)?).find(|(kind, _)| *kind == TABLE_USERDATA);
        Some(userdata.and_then(|(_, value)| comment_of(value)).unwrap_or_default())
    })
}

/// Removes our table of a family, whether it stands or not.
pub fn delete_table(socket: &mut Socket, family: u8) -> io::Result<()> {
    let named = |kind, flags| {
        let mut message = Message::new(kind, flags, &header(family));
        message.text(TABLE_NAME, TABLE);
        message
    };
    // Made first, deleting it never fails.
    let changes = vec![named(NEW_TABLE, libc::NLM_F_CREATE), named(DELETE_TABLE, 0)];
    socket.transaction(libc::NFNL_SUBSYS_NFTABLES as u8, changes)
}

/// The comment in a table's user data: type, length and value, one byte each for the first two.
pub fn comment_of(mut bytes: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        if kind == COMMENT {
            return Some(text_of(value));
        }
        bytes = bytes.get(2 + length..)?;
    }
}

/// A hash over everything in our tables: chains, rules, sets and their elements, handles included, so that a rule that was
/// taken out and put back is noticed too. Counters count on without changing it, because rules only name them.
pub fn fingerprint(socket: &mut Socket) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for family in FAMILIES {
        for (request, table) in [(GET_CHAIN, CHAIN_TABLE), (GET_RULE, RULE_TABLE), (GET_SET, SET_TABLE)] {
            let mut message = Message::new(request, 0, &header(family));
            message.text(table, TABLE);
            let objects = socket.dump(message, |payload| {
                let body = payload.get(HEADER..)?;
                let ours = payload.first() == Some(&family)
                    && attributes(body).any(|(k, v)| k == table && text_of(v) == TABLE);
                ours.then(|| body.to_vec())
            })?;
            for object in &objects {
                // The number of a set's elements is no part of what was asked for.
                let counted = |kind| request == GET_SET && kind >= SET_COUNT;
                attributes(object).filter(|(kind, _)| !counted(*kind)).for_each(|(_, value)| add(value));
                if request == GET_SET {
                    let name = attributes(object).find(|(kind, _)| *kind == SET_NAME).map(|(_, value)| text_of(value));
                    let name = name.unwrap_or_default();
                    // What the name services open comes and goes by itself.
                    if !egress::LEASE_SETS.contains(&name.as_str()) {
                        elements(socket, family, &name)?.iter().for_each(|e| add(e));
                    }
                }
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A set's elements, sorted: a hash set lists them in any order.
pub fn elements(socket: &mut Socket, family: u8, set: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut message = Message::new(GET_ELEMENTS, 0, &header(family));
    message.text(ELEMENTS_TABLE, TABLE).text(ELEMENTS_SET, set);
    let parts = socket.dump(message, |payload| {
        let (_, list) = attributes(payload.get(HEADER..)?).find(|(kind, _)| *kind == ELEMENTS)?;
        Some(attributes(list).map(|(_, element)| element.to_vec()).collect::<Vec<_>>())
    })?;
    let mut all: Vec<_> = parts.into_iter().flatten().collect();
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_found_among_other_user_data() {
        assert_eq!(comment_of(&[1, 2, 9, 9, 0, 3, b'h', b'i', 0]), Some("hi".into()));
        assert_eq!(comment_of(&[0, 9, 1]), None);
        assert_eq!(comment_of(&[]), None);
    }
}
