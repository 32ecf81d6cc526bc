//! Devices of machines: relays, nodes of the host, further network cards. Each by what really passes.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use ilot_tests::{Servers, World, eventually, in_netns_of, in_world, sh, tcp_answers, udp_answers};

fn project(devices: &str) -> String {
    format!(
        r#"
project_name: things
global: {{addressing: {{base_octet: 10, zone_base: 170, zone_step: 10}}, default_os_image: busybox}}
domains:
  one:
    ephemeral: true
    machines:
      box:
        devices:
{devices}
  two:
    ephemeral: true
    machines:
      peer: {{}}
"#
    )
}

fn inspect(world: &World, machine: &str) -> serde_json::Value {
    let info = world.ilot(["inspect", machine, "--json"]).ok().json();
    if info.is_array() { info[0].clone() } else { info }
}

fn pid(world: &World, machine: &str) -> i64 {
    inspect(world, machine)["pid"].as_i64().expect("it runs")
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn nothing_to_do(world: &World, file: &str) {
    let plan = world.ilot(["plan", "-f", file, "--json"]).ok().json();
    assert_eq!(plan["changes"], serde_json::json!([]));
}

/// A socket file that sends back what it reads, until the reader has ended.
fn echo(path: &std::path::Path) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    })
}

/// Sends a lot through and gets it back, whole.
fn round_trip(mut stream: impl Read + Write, end: impl FnOnce()) {
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    end();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
}

#[test]
fn relays_pass_streams_and_packets_both_ways() {
    in_world(|world| {
        let (inward, outward) = (world.path("inward.sock"), world.path("outward.sock"));
        let devices = format!(
            r#"
          web: {{type: proxy, listen: "tcp:127.0.0.1:7001", connect: "tcp:127.0.0.1:8080"}}
          ask: {{type: proxy, listen: "udp:127.0.0.1:7002", connect: "udp:127.0.0.1:8080"}}
          many: {{type: proxy, listen: "tcp:127.0.0.1:7010-7011", connect: "tcp:127.0.0.1:8080-8081"}}
          file: {{type: proxy, listen: "unix:{}", connect: "tcp:127.0.0.1:8081", mode: "0600"}}
          out: {{type: proxy, bind: instance, listen: "tcp:127.0.0.1:9000", connect: "tcp:127.0.0.1:7100"}}
          sock: {{type: proxy, bind: instance, listen: "unix:/run/host.sock", connect: "unix:{}", uid: "7", mode: "0620"}}
"#,
            inward.display(),
            outward.display()
        );
        let file = world.write("infra.yml", &project(&devices));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        nothing_to_do(world, file);
        let inside = pid(world, "box");
        let servers = Servers::start(Some(inside), &[8080, 8081]);
        assert!(tcp_answers(address("127.0.0.1:7001")), "tcp in");
        assert!(udp_answers(address("127.0.0.1:7002")), "udp in");
        assert!(tcp_answers(address("127.0.0.1:7010")) && tcp_answers(address("127.0.0.1:7011")), "a range of ports");
        let meta = fs::metadata(&inward).unwrap();
        assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600);
        let mut hello = [0; 5];
        UnixStream::connect(&inward).unwrap().read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello", "unix in");
        drop(servers);

        let host = Servers::start(None, &[7100]);
        assert!(in_netns_of(inside, || tcp_answers(address("127.0.0.1:9000"))), "tcp out");
        drop(host);
        let stat = world.exec("box", "stat -c '%F %u %g %a' /run/host.sock").stdout;
        assert_eq!(stat, "socket 7 0 620\n");
        let server = echo(&outward);
        let through = UnixStream::connect(format!("/proc/{inside}/root/run/host.sock")).unwrap();
        let ender = through.try_clone().unwrap();
        round_trip(through, move || ender.shutdown(Shutdown::Write).unwrap());
        server.join().unwrap();

        // Nobody listens behind it: the connection ends, the relay stays.
        let mut stream = TcpStream::connect("127.0.0.1:7001").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        let _servers = Servers::start(Some(inside), &[8080]);
        assert!(tcp_answers(address("127.0.0.1:7001")));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        assert!(!inward.exists(), "the socket file is gone");
        world.assert_clean();
    });
}

/// The relays of this world, by their directory.
fn relays(world: &World) -> Vec<(String, i32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(world.run_dir().join("proxies/box")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
        if let Some(pid) = text.split(' ').next().and_then(|n| n.parse().ok())
            && fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("ilot-proxy"))
        {
            found.push((entry.file_name().to_string_lossy().into_owned(), pid));
        }
    }
    found.sort();
    found
}

#[test]
fn relays_are_found_restarted_and_removed() {
    in_world(|world| {
        let web = r#"          web: {type: proxy, listen: "tcp:127.0.0.1:7001", connect: "tcp:127.0.0.1:8080"}"#;
        let file = world.write("infra.yml", &project(web));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let before = pid(world, "box");
        let [(_, relay)] = relays(world)[..] else { panic!("one relay: {:?}", relays(world)) };
        let status = fs::read_to_string(format!("/proc/{relay}/status")).unwrap();
        let owner = fs::metadata(format!("/proc/{relay}")).unwrap().uid();
        assert!(status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(owner == 0 || owner >= 0x7000_0000, "it runs as {owner}");
        assert!(status.lines().any(|l| l.starts_with("Uid:\t18")), "as the machine's root: {status}");

        // Killed: the plan says so, and apply starts it again, without a restart of the machine.
        rustix::process::kill_process(rustix::process::Pid::from_raw(relay).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        assert!(eventually(Duration::from_secs(5), || relays(world).is_empty()));
        let plan = world.ilot(["plan", "-f", file]).ok();
        assert!(plan.stdout.contains("relay web"), "{plan}");
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert_eq!((relays(world).len(), pid(world, "box")), (1, before));

        // Another port, one more, none: live, all of it.
        let more = r#"          web: {type: proxy, listen: "tcp:127.0.0.1:7005", connect: "tcp:127.0.0.1:8080"}
          two: {type: proxy, listen: "tcp:127.0.0.1:7006", connect: "tcp:127.0.0.1:8080"}"#;
        world.write("infra.yml", &project(more));
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let servers = Servers::start(Some(before), &[8080]);
        assert!(tcp_answers(address("127.0.0.1:7005")) && tcp_answers(address("127.0.0.1:7006")));
        assert!(TcpStream::connect("127.0.0.1:7001").is_err(), "the old one is gone");
        drop(servers);
        // They end with the machine, come back with it, and go with the device.
        world.ilot(["stop", "-t", "0", "box"]).ok();
        assert!(relays(world).is_empty());
        world.ilot(["start", "box"]).ok();
        assert_eq!(relays(world).len(), 2);
        world.write("infra.yml", &project("          {}").replace("devices:\n          {}", "devices: {}"));
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(relays(world).is_empty());
        nothing_to_do(world, file);

        // A port that somebody has: said by name, and the machine is not left half-made.
        let taken = TcpListener::bind("127.0.0.1:7001").unwrap();
        world.write("infra.yml", &project(web));
        let failed = world.ilot(["apply", "-f", file, "--yes"]).fails();
        assert!(failed.stderr.contains("tcp:127.0.0.1:7001"), "{failed}");
        drop(taken);
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        nothing_to_do(world, file);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn nodes_of_the_host() {
    in_world(|world| {
        let devices = r#"
          zero: {type: unix-char, source: /dev/zero, path: /dev/my-zero, uid: "5", gid: "6", mode: "0640"}
          fuse: {type: unix-char, path: /dev/fuse, required: "false"}
          absent: {type: unix-char, path: /dev/no-such-device, required: "false"}
          key: {type: usb, vendorid: "ffff", productid: "ffff"}
"#;
        let file = world.write("infra.yml", &project(devices));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        nothing_to_do(world, file);
        let stat = world.exec("box", "stat -c '%F %u %g %a %t %T' /dev/my-zero");
        assert_eq!(stat.stdout, "character special file 5 6 640 1 5\n", "{stat}");
        assert_eq!(
            world.exec("box", "head -c 3 /dev/my-zero | wc -c; ls /dev/no-such-device 2>&1").stdout.lines().next(),
            Some("3")
        );
        // What it has anyway still works; what it does not have, it cannot have.
        let rest = world.exec("box", "echo x > /dev/null && head -c 1 /dev/urandom | wc -c");
        assert_eq!(rest.stdout, "1\n", "{rest}");
        assert!(!world.exec("box", "mknod /dev/other c 1 11").status.success());
        world.ilot(["restart", "-t", "0", "box"]).ok();
        assert!(world.exec("box", "test -c /dev/my-zero").status.success());

        for (device, says) in [
            ("{type: unix-char, path: /dev/no-such-device}", "/dev/no-such-device"),
            ("{type: unix-char, path: /dev/x, source: /etc/hostname}", "no character device"),
            ("{type: usb, vendorid: \"ffff\", required: \"true\"}", "plugged in"),
            ("{type: gpu, id: \"77\"}", "no such graphics card"),
            ("{type: gpu, gputype: mdev}", "mdev"),
            ("{type: nic, nictype: sriov, parent: eth0}", "sriov"),
            ("{type: nic, network: nowhere}", "nowhere"),
            ("{type: nic, network: two, security.mac_filtering: false}", "always checked"),
            ("{type: nic, nictype: macvlan, parent: lo, security.ipv4_filtering: true}", "macvlan"),
            ("{type: proxy, listen: \"tcp:127.0.0.1:1\", connect: \"tcp:127.0.0.1:1\", nat: \"true\"}", "nat"),
            ("{type: proxy, listen: \"udp:127.0.0.1:1\", connect: \"tcp:127.0.0.1:1\"}", "packets"),
        ] {
            world.write("infra.yml", &project(&format!("          thing: {device}")));
            let refused = world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).fails();
            assert!(refused.stderr.contains(says) && refused.stderr.contains("thing"), "{device}: {refused}");
        }
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn further_network_cards() {
    in_world(|world| {
        sh(
            "ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up; ip addr add 192.0.2.1/24 dev lan1",
        );
        let devices = r#"
          eth0: {type: nic, network: net-one, security.mac_filtering: "true"}
          eth1: {type: nic, network: two, ipv4.address: 10.190.1.77}
          lan: {type: nic, nictype: macvlan, parent: lan0, name: lan, hwaddr: "02:00:00:00:00:99"}
"#;
        let text = project(devices).replace("  two:\n", "  two:\n    subnet_id: 1\n");
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        nothing_to_do(world, file);
        let peer = inspect(world, "peer")["ip"].as_str().unwrap().to_owned();
        let own = inspect(world, "box")["ip"].as_str().unwrap().to_owned();
        let show = world.exec("box", "ip -4 addr show dev eth1; ip route; cat /sys/class/net/lan/address");
        assert!(show.stdout.contains("10.190.1.77/24") && show.stdout.contains("02:00:00:00:00:99"), "{show}");
        assert_eq!(show.stdout.matches("default via").count(), 1, "{show}");
        let (box_pid, peer_pid) = (pid(world, "box"), pid(world, "peer"));
        let servers = (Servers::start(Some(box_pid), &[80]), Servers::start(Some(peer_pid), &[80]));
        assert!(in_netns_of(box_pid, || tcp_answers(address(&format!("{peer}:80")))), "through the second card");
        assert!(in_netns_of(peer_pid, || tcp_answers(address("10.190.1.77:80"))), "to the second card");
        assert!(!in_netns_of(peer_pid, || tcp_answers(address(&format!("{own}:80")))), "not to the other domain");
        // A leg is bound to its address like any port.
        sh(&format!("nsenter -t {box_pid} -n ip addr add 10.190.1.78/24 dev eth1"));
        let forged = in_netns_of(box_pid, || {
            let socket = std::net::UdpSocket::bind("10.190.1.78:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
            socket.send_to(b"?", format!("{peer}:80")).unwrap();
            socket.recv(&mut [0; 8]).is_ok()
        });
        assert!(!forged, "an address of somebody else passes");
        drop(servers);
        sh(&format!("nsenter -t {box_pid} -n ip addr add 192.0.2.2/24 dev lan"));
        assert!(world.exec("box", "ping -c 1 -W 2 192.0.2.1").status.success(), "macvlan");
        // The card goes with its device, and its address is free again.
        world.write(
            "infra.yml",
            &text.replace("          eth1: {type: nic, network: two, ipv4.address: 10.190.1.77}\n", ""),
        );
        let held = world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(held.stderr.contains("--allow-restart"), "{held}");
        assert!(in_netns_of(pid(world, "box"), || udp_answers_from_leg(&peer, peer_pid)), "held back: it still works");
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert!(!world.exec("box", "ip link show dev eth1").status.success());
        nothing_to_do(world, file);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        sh("ip link del lan0");
        world.assert_clean();
    });
}

/// Whether the peer answers, asked from this thread's namespace.
fn udp_answers_from_leg(peer: &str, peer_pid: i64) -> bool {
    let _server = Servers::start(Some(peer_pid), &[81]);
    udp_answers(address(&format!("{peer}:81")))
}
