//! A connection to systemd: by the message bus, or where there is none by systemd's own socket.

use super::message::{self, Body, Message, Target};
use crate::{Error, Result};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long systemd may take for one step.
const PATIENCE: Duration = Duration::from_secs(25);

const BUS: Target =
    Target { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// systemd's manager object.
pub const MANAGER: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// Ends of jobs.
const MATCH: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
                     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// Why a call did not do what it should.
#[derive(Debug)]
pub struct Refusal {
    /// `org.freedesktop.systemd1.UnitExists`, …
    pub name: String,
    /// For people.
    pub text: String,
}

/// An open connection to the manager of the system or of the user.
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Jobs that have ended meanwhile: object path and result.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects and asks to be told of ends of jobs.
    ///
    /// # Errors
    /// If no manager can be reached, with what to do about it.
    pub fn connect(user: bool) -> Result<Self> {
        let places = if user { user_sockets() } else { system_sockets() };
        let mut last = None;
        for (path, private) in &places {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::greet(stream, *private).map_err(|why| refused(path, &why)),
                Err(error) => last = Some((path, error)),
            }
        }
        let why = last.map_or_else(
            || "`XDG_RUNTIME_DIR` and `DBUS_SESSION_BUS_ADDRESS` are not set".to_owned(),
            |(path, error)| format!("`{}`: {error}", path.display()),
        );
        Err(Error::Unsupported {
            what: if user { "user manager of systemd" } else { "systemd" }.to_owned(),
            why,
            cure: if user {
                "log in by a session of systemd, or `loginctl enable-linger` and set `XDG_RUNTIME_DIR=/run/user/UID`; \
                 or use the cgroupfs manager (`--cgroup-manager cgroupfs`)"
            } else {
                "start the message bus (package dbus), or use the cgroupfs manager (`--cgroup-manager cgroupfs`)"
            },
        })
    }

    fn greet(stream: UnixStream, private: bool) -> Result<Self, String> {
        let fail = |e: std::io::Error| e.to_string();
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        let mut bus = Self { stream, serial: 0, ended: Vec::new() };
        // Who we are the kernel says; our own number may be another in here (a user namespace).
        bus.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").map_err(fail)?;
        let (first, second) = (bus.line()?, bus.line()?);
        if first != "DATA" || !second.starts_with("OK ") {
            return Err(format!("it does not let us in: {first} {second}"));
        }
        let say = |r: Refusal| format!("{}: {}", r.name, r.text);
        if !private {
            bus.call(BUS, "Hello", &Body::default())?.map_err(say)?;
            bus.call(BUS, "AddMatch", &Body::default().text(MATCH))?.map_err(say)?;
        }
        bus.call(MANAGER, "Subscribe", &Body::default())?.map_err(say)?;
        Ok(bus)
    }

    /// A line of the greeting; byte by byte, since messages follow it.
    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).map_err(|e| e.to_string())?;
            line.push(byte[0]);
            if line.len() > 1000 {
                return Err("its greeting has no end".to_owned());
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Calls a method and waits for the answer.
    pub fn call(&mut self, target: Target, member: &str, body: &Body) -> Result<Result<Message, Refusal>, String> {
        self.serial += 1;
        let serial = self.serial;
        let bytes = message::call(serial, target, member, body);
        self.stream.write_all(&bytes).map_err(|e| format!("{member}: {e}"))?;
        loop {
            let message = self.receive().map_err(|e| format!("{member}: {e}"))?;
            match message.kind {
                message::RETURN if message.reply_to == serial => return Ok(Ok(message)),
                message::ERROR if message.reply_to == serial => {
                    let text = message.texts().first().copied().unwrap_or_default().to_owned();
                    return Ok(Err(Refusal { name: message.error, text }));
                }
                _ => self.note(&message),
            }
        }
    }

    /// Waits for the end of a job; its result, `done` when all is well.
    pub fn wait_job(&mut self, job: &str) -> Result<String, String> {
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| path == job) {
                return Ok(result.clone());
            }
            let message = self.receive().map_err(|e| format!("wait for {job}: {e}"))?;
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Message) {
        // number, object path, unit, result
        if message.kind == message::SIGNAL
            && message.member == "JobRemoved"
            && let [job, _, result] = message.texts()[..]
        {
            self.ended.push((job.to_owned(), result.to_owned()));
        }
    }

    fn receive(&mut self) -> Result<Message, String> {
        let say = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::WouldBlock => format!("no answer in {} s", PATIENCE.as_secs()),
            _ => e.to_string(),
        };
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).map_err(say)?;
        let length = message::length(&head).ok_or("an answer that is not understood")?;
        let mut bytes = head.to_vec();
        bytes.resize(length, 0);
        self.stream.read_exact(&mut bytes[16..]).map_err(say)?;
        message::parse(&bytes).ok_or_else(|| "an answer that is not understood".to_owned())
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::invalid(format!("systemd at `{}`", path.display()), why)
}

/// Sockets to try, each with whether it is systemd's own.
fn system_sockets() -> Vec<(PathBuf, bool)> {
    vec![("/run/dbus/system_bus_socket".into(), false), ("/run/systemd/private".into(), true)]
}

fn user_sockets() -> Vec<(PathBuf, bool)> {
    let mut list = Vec::new();
    if let Some(path) = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok().as_deref().and_then(socket_of) {
        list.push((path, false));
    }
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        list.push((dir.join("bus"), false));
        list.push((dir.join("systemd/private"), true));
    }
    list
}

/// The socket's path in an address of D-Bus, as `unix:path=/run/user/1000/bus,guid=…`.
fn socket_of(address: &str) -> Option<PathBuf> {
    let unix = address.split(';').find_map(|a| a.strip_prefix("unix:"))?;
    let path = unix.split(',').find_map(|pair| pair.strip_prefix("path="))?;
    // Escaped bytes (`%20`) are for stranger places than these.
    (!path.contains('%')).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(socket_of("unix:path=/run/user/1/bus,guid=1").as_deref(), Some(Path::new("/run/user/1/bus")));
        assert_eq!(socket_of("tcp:host=x;unix:path=/a").as_deref(), Some(Path::new("/a")));
        assert_eq!(socket_of("unix:abstract=/a"), None);
    }
}
