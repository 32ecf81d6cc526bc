//! The relays of proxy devices: started with their machine, found again, restarted, ended.

use std::collections::BTreeMap;

use ilot_net::proxy::{self, Bind, Inside, ProxyConfig, Transport};
use ilot_runtime::Status;

use super::{DeviceRecord, ProxyRecord};
use crate::Native;
use crate::error::{Error, Result};
use crate::ids;
use crate::record::MachineRecord;

/// Nobody of the host.
const NOBODY: u32 = 65_534;

impl Native {
    /// Makes the machine's relays what its record says, if it runs; none otherwise.
    pub(crate) fn settle_relays(&self, record: &MachineRecord) -> Result<()> {
        let wanted: BTreeMap<&str, &ProxyRecord> = record
            .devices
            .iter()
            .filter_map(|(name, device)| match device {
                DeviceRecord::Proxy(proxy) => Some((name.as_str(), proxy)),
                _ => None,
            })
            .collect();
        let run_dir = self.paths.machine_run(&record.name);
        let pid = ilot_runtime::state(&run_dir)?
            .filter(|s| matches!(s.status, Status::Running | Status::Paused))
            .and_then(|s| s.pid);
        for (relay, _) in proxy::known(&self.paths.run)?.into_iter().filter(|(r, _)| r.machine == record.name) {
            if pid.is_none() || !wanted.contains_key(relay.device.as_str()) {
                proxy::stop(&self.paths.run, &relay.machine, &relay.device)?;
            }
        }
        let Some(pid) = pid.filter(|_| !wanted.is_empty()) else { return Ok(()) };
        let inside = Inside {
            netns: ilot_runtime::netns(&run_dir)?,
            root: ilot_runtime::open_root(&run_dir)?,
            root_uid: record.id_base,
        };
        for (name, device) in wanted {
            proxy::ensure(&self.paths.run, &config(record, name, device, pid)?, &inside)?;
        }
        Ok(())
    }

    /// Ends every relay of a machine.
    pub(crate) fn stop_relays(&self, machine: &str) -> Result<()> {
        for (relay, _) in proxy::known(&self.paths.run)?.into_iter().filter(|(r, _)| r.machine == machine) {
            proxy::stop(&self.paths.run, &relay.machine, &relay.device)?;
        }
        Ok(())
    }
}

fn config(record: &MachineRecord, name: &str, device: &ProxyRecord, pid: i32) -> Result<ProxyConfig> {
    let shifted = |id: u32| {
        (id < ids::SIZE).then(|| record.id_base + id).ok_or_else(|| Error::Invalid {
            message: format!("machine `{}`: device `{name}`: it has no id {id}", record.name),
            help: Some(format!("ids inside are 0 to {}", ids::SIZE - 1)),
        })
    };
    let (uid, gid) = (device.socket.uid, device.socket.gid);
    let socket = match device.bind {
        Bind::Host => (uid, gid, device.socket.mode),
        Bind::Instance => (shifted(uid)?, shifted(gid)?, device.socket.mode),
    };
    let user = match (device.bind, device.user) {
        (Bind::Host, user) => {
            let (uid, gid) = user.unwrap_or((0, 0));
            (shifted(uid)?, shifted(gid)?)
        }
        (Bind::Instance, Some(user)) => user,
        // A socket file of the host's root can be reached by root only, and root without rights is all that is left of it.
        (Bind::Instance, None) => {
            let file = |a: &proxy::Address| matches!(a, proxy::Address::Path(_) | proxy::Address::Abstract(_));
            let streams = device.pairs.iter().all(|(_, to)| to.transport() == Transport::Stream);
            if streams && device.pairs.iter().any(|(_, to)| file(to)) { (0, 0) } else { (NOBODY, NOBODY) }
        }
    };
    Ok(ProxyConfig {
        machine: record.name.clone(),
        device: name.to_owned(),
        bind: device.bind,
        pairs: device.pairs.clone(),
        socket,
        user,
        pid,
    })
}
