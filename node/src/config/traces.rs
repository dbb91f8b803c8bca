//! Flags of `pangea node` for traces, and the standard variables of OpenTelemetry beside them.

use clap::Args;
use ureq::http::Uri;

use super::node::ConfigError;
use crate::traces::TraceSettings;

/// Path of spans at a collector (OTLP/HTTP 1.0).
const PATH: &str = "v1/traces";

/// Traces, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Traces")]
pub struct TraceFlags {
    /// Send spans of requests to an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318; without it, and
    /// without OTEL_EXPORTER_OTLP_ENDPOINT in the environment, none are made
    #[arg(long, value_name = "URL", env = "PANGEA_TRACES", hide_env_values = true, value_parser = endpoint)]
    pub traces: Option<String>,

    /// Share of the requests to this node that are traced where the client does not say it, 0 to 1 [default: 1]
    #[arg(long, value_name = "SHARE", env = "PANGEA_TRACES_RATIO", hide_env_values = true, value_parser = ratio)]
    pub traces_ratio: Option<f64>,
}

impl TraceFlags {
    /// Fills in the defaults; `variable` reads the environment.
    pub(super) fn resolve(
        self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<TraceSettings>, ConfigError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let standard = |name: &'static str, of_all_signals: bool| {
            let Some(value) = set(name) else { return Ok(None) };
            let complete = |url: Uri| if of_all_signals { with_path(&url) } else { url.to_string() };
            let url = url(&value).map(complete);
            url.map(Some).map_err(|why| ConfigError::Variable { name, value, why })
        };
        let endpoint = match self.traces {
            Some(endpoint) => Some(endpoint),
            None if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) => None,
            None => match standard("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", false)? {
                Some(endpoint) => Some(endpoint),
                None => standard("OTEL_EXPORTER_OTLP_ENDPOINT", true)?,
            },
        };
        let Some(endpoint) = endpoint else { return Ok(None) };
        let ratio = match (self.traces_ratio, set("OTEL_TRACES_SAMPLER").as_deref()) {
            (Some(ratio), _) => ratio,
            (None, Some("always_off" | "parentbased_always_off")) => 0.0,
            (None, Some("traceidratio" | "parentbased_traceidratio")) => {
                let name = "OTEL_TRACES_SAMPLER_ARG";
                let value = set(name).unwrap_or_else(|| "1".to_owned());
                ratio(&value).map_err(|why| ConfigError::Variable { name, value, why })?
            }
            (None, _) => 1.0,
        };
        Ok(Some(TraceSettings { endpoint, ratio }))
    }
}

/// The URL that spans are posted to; one without a path is that of a collector.
fn endpoint(text: &str) -> Result<String, String> {
    let url = url(text)?;
    Ok(if url.path() == "/" { with_path(&url) } else { url.to_string() })
}

fn with_path(url: &Uri) -> String {
    format!("{}/{PATH}", url.to_string().trim_end_matches('/'))
}

fn url(text: &str) -> Result<Uri, String> {
    let wrong = || "use a URL such as http://127.0.0.1:4318".to_owned();
    let url: Uri = text.trim().parse().map_err(|_| wrong())?;
    let authority = url.authority().ok_or_else(wrong)?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(wrong());
    }
    if authority.as_str().contains('@') {
        return Err("a password in a URL shows in logs; put it into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(url)
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "use a number from 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::tests::{refusal, resolve};

    /// The settings where these flags and variables are set.
    fn settings(traces: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let flags = TraceFlags { traces: traces.map(|url| endpoint(url).unwrap()), traces_ratio: None };
        let variable = |name: &str| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned());
        flags.resolve(variable).map_err(|error| error.to_string())
    }

    fn to(endpoint: &str, ratio: f64) -> Result<Option<TraceSettings>, String> {
        Ok(Some(TraceSettings { endpoint: endpoint.to_owned(), ratio }))
    }

    #[test]
    fn nothing_is_traced_unless_somebody_says_where_to() {
        assert_eq!(settings(None, &[]), Ok(None));
        assert_eq!(
            settings(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_TRACES_SAMPLER", "always_on")]),
            Ok(None)
        );
        let standard = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        assert_eq!(settings(None, &[standard]), to("http://collector:4318/v1/traces", 1.0));
        assert_eq!(settings(None, &[standard, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(settings(Some("http://other:1"), &[standard]), to("http://other:1/v1/traces", 1.0));
    }

    #[test]
    fn a_path_is_kept_and_a_collector_without_one_gets_that_of_the_protocol() {
        assert_eq!(settings(Some("https://traces.example/a/b"), &[]), to("https://traces.example/a/b", 1.0));
        let exact = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/in");
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/otlp");
        assert_eq!(settings(None, &[exact, all]), to("http://collector:4318/in", 1.0));
        assert_eq!(settings(None, &[all]), to("http://collector:4318/otlp/v1/traces", 1.0));
    }

    #[test]
    fn the_standard_samplers_say_the_share_where_the_flag_does_not() {
        let share = |variables: &[(&str, &str)]| settings(Some("http://c:1"), variables).map(|set| set.unwrap().ratio);
        assert_eq!(share(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")]), Ok(0.0));
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        assert_eq!(share(&[ratio]), Ok(1.0));
        assert_eq!(share(&[ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.25")]), Ok(0.25));
        let wrong = share(&[ratio, ("OTEL_TRACES_SAMPLER_ARG", "all")]).unwrap_err();
        assert!(wrong.contains("OTEL_TRACES_SAMPLER_ARG") && wrong.contains("0 to 1"), "{wrong}");
    }

    #[test]
    fn flags_and_the_file_take_urls_and_shares_only() {
        let set = resolve(&["--traces", "http://127.0.0.1:4318"], "traces-ratio = 0.5").traces.unwrap();
        assert_eq!((set.endpoint.as_str(), set.ratio), ("http://127.0.0.1:4318/v1/traces", 0.5));
        for url in ["127.0.0.1:4318", "ftp://x", "http://", "", "/v1/traces"] {
            assert!(refusal(&["--traces", url], "").contains("http://127.0.0.1:4318"), "{url}");
        }
        assert!(refusal(&["--traces", "http://me:secret@host"], "").contains("OTEL_EXPORTER_OTLP_HEADERS"));
        for share in ["-0.1", "1.1", "NaN", "half"] {
            let typed = format!("--traces-ratio={share}");
            assert!(refusal(&["--traces", "http://c:1", &typed], "").contains("0 to 1"), "{share}");
        }
    }
}
