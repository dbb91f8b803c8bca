//! The property list of launchd (launchd.plist(5)): started at log-in, and again when it fails.

use std::path::Path;

pub(super) const LABEL: &str = "net.pangea.node";

/// The property list; `words`: its command.
pub(super) fn text(words: &[String], home: &Path) -> String {
    let words: String = words.iter().map(|word| format!("    <string>{}</string>\n", escaped(word))).collect();
    let log = escaped(&home.join("Library/Logs/pangea.log").to_string_lossy());
    format!(
        "\
<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">
<plist version=\"1.0\">
<dict>
  <key>Label</key>
  <string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array>
{words}  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ProcessType</key>
  <string>Adaptive</string>
  <key>ExitTimeOut</key>
  <integer>20</integer>
  <key>StandardErrorPath</key>
  <string>{log}</string>
</dict>
</plist>
"
    )
}

pub(super) fn load(file: &Path) -> Vec<String> {
    ["launchctl", "load", "-w"].into_iter().map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect()
}

pub(super) fn unload(file: &Path) -> Vec<String> {
    ["launchctl", "unload", "-w"].into_iter().map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect()
}

pub(super) fn show() -> Vec<String> {
    ["launchctl", "list", LABEL].map(str::to_owned).into()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_escaped_and_the_log_is_the_users() {
        let text = text(&["/bin/a<b&c>".to_owned()], Path::new("/Users/ada"));
        assert!(text.contains("<string>/bin/a&lt;b&amp;c&gt;</string>"), "{text}");
        assert!(text.contains("<string>/Users/ada/Library/Logs/pangea.log</string>"), "{text}");
    }
}
