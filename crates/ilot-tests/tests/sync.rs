//! The Ansible tree: what a user wrote in it is never lost.

use ilot_tests::in_world;

const PROJECT: &str = "project_name: tree\nglobal: {default_os_image: busybox}\ndomains:\n  one:\n    machines:\n      web: {roles: [base_system], vars: {port: 80}}\n      gone: {}\n";

#[test]
fn what_a_user_wrote_stays() {
    in_world(|world| {
        let file = world.write("p/infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        let read = |name: &str| std::fs::read_to_string(world.path("p").join(name)).unwrap_or_default();
        let dry = world.ilot(["sync", "-f", file, "--dry-run"]).ok();
        assert!(dry.stdout.contains("host_vars/web.yml") && !world.path("p/site.yml").exists(), "{dry}");
        world.write("p/host_vars/gone.yml", "---\n# mine\nkept: 1\n");
        world.ilot(["sync", "-f", file]).ok();
        assert!(read("inventory/hosts.yml").contains("web: {\"ansible_host\":\"10.120.0.1\"}"));
        assert!(read("site.yml").contains("- hosts: web\n  roles: [\"base_system\"]"));
        assert!(
            read("host_vars/web.yml").contains("port: 80\n") && read("group_vars/one.yml").contains("10.120.0.254")
        );
        assert!(read("host_vars/gone.yml").ends_with("# mine\nkept: 1\n"));
        assert_eq!(world.ilot(["sync", "-f", file]).ok().stdout, "nothing to do\n");
        let web = read("host_vars/web.yml");
        world.write("p/host_vars/web.yml", &format!("# before\n{web}# after\nown: true\n"));
        world.write("p/infra.yml", &PROJECT.replace("port: 80", "port: 81").replace("      gone: {}\n", ""));
        let listed = world.ilot(["sync", "-f", file]).ok();
        assert!(listed.stdout.contains("orphan") && listed.stdout.contains("host_vars/gone.yml"), "{listed}");
        let web = read("host_vars/web.yml");
        assert!(
            web.starts_with("# before\n") && web.ends_with("# after\nown: true\n") && web.contains("port: 81"),
            "{web}"
        );
        world.ilot(["sync", "-f", file, "--clean-orphans"]).ok();
        assert_eq!(read("host_vars/gone.yml"), "---\n# mine\nkept: 1\n");
        world.assert_clean();
    });
}

#[test]
fn it_stands_where_ansible_is_run() {
    in_world(|world| {
        world.write("p/infra/base.yml", "project_name: tree\nglobal: {default_os_image: busybox}\n");
        world.write("p/infra/domains/one.yml", "one: {machines: {web: {}}}\n");
        // A document that begins late is still one document.
        world.write("p/host_vars/web.yml", "# mine\n---\nkept: 1\n");
        for file in ["p/infra", "p", "p/infra/base.yml"] {
            world.ilot(["sync", "-f", file]).ok();
            assert!(
                world.path("p/inventory/hosts.yml").exists() && !world.path("p/infra/inventory").exists(),
                "{file}"
            );
        }
        let web = std::fs::read_to_string(world.path("p/host_vars/web.yml")).unwrap();
        assert!(web.starts_with("# mine\n---\n# BEGIN") && web.ends_with("\nkept: 1\n"), "{web}");
        assert_eq!(web.matches("---\n").count(), 1, "{web}");
        // Only one of the marks: nothing is touched.
        let damaged = web.replace("# END written by ilot\n", "");
        world.write("p/host_vars/web.yml", &damaged);
        let refused = world.ilot(["sync", "-f", "p"]).fails();
        assert!(refused.stderr.contains("one of ilot's marks"), "{refused}");
        assert_eq!(std::fs::read_to_string(world.path("p/host_vars/web.yml")).unwrap(), damaged);
        world.assert_clean();
    });
}
