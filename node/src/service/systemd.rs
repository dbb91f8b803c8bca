//! The unit of systemd (systemd.service(5), systemd.exec(5)): restarted when it fails, with nothing that a node does not need.

use std::path::Path;

pub(super) const UNIT: &str = "pangea.service";

/// The unit; `words`: its command. `is_system`: whether it is the system's, which gives it a user of its own and a folder.
pub(super) fn text(words: &[String], data_dir: &Path, is_system: bool) -> String {
    let command: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let command = command.join(" ");
    let place = match is_system {
        true => "DynamicUser=yes\nStateDirectory=pangea\nProtectHome=yes\n".to_owned(),
        false => format!("ReadWritePaths=-{}\n", quoted(&data_dir.to_string_lossy())),
    };
    let wanted_by = if is_system { "multi-user.target" } else { "default.target" };
    format!(
        "\
[Unit]
Description=Pangea node
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=2
# A node lets its work end for ten seconds.
TimeoutStopSec=20
LimitNOFILE=65536
{place}NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy={wanted_by}
"
    )
}

/// A word of a command line in a unit: `%`, `$`, quotes and backslashes mean something there.
fn quoted(word: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in word.chars() {
        match letter {
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_unit_is_escaped() {
        assert_eq!(quoted(r#"a b"c\d%e$f"#), r#""a b\"c\\d%%e$$f""#);
    }

    #[test]
    fn a_system_service_has_a_user_of_its_own_and_a_user_service_its_data_directory() {
        let words = ["/usr/bin/pangea".to_owned(), "node".to_owned()];
        let system = text(&words, Path::new("/var/lib/pangea"), true);
        assert!(system.contains("DynamicUser=yes\nStateDirectory=pangea\n"), "{system}");
        assert!(system.contains("ExecStart=\"/usr/bin/pangea\" \"node\"\n"), "{system}");
        let user = text(&words, Path::new("/home/ada/.pangea"), false);
        assert!(user.contains("ReadWritePaths=-\"/home/ada/.pangea\"\n") && !user.contains("DynamicUser"), "{user}");
    }
}
