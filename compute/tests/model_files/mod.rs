//! Where the tests find the models that they need, which are too large to be kept beside them.
//! Nothing is fetched here.

use crate::skip::skip;
use std::path::PathBuf;

/// The file of that name in `$PANGEA_TEST_MODELS`, else in `~/.cache/pangea/test-models`. Where it is not there, says
/// that `test` does not run, past the capture of a passing test's output.
///
/// # Panics
/// Where it is not there and `PANGEA_TESTS_NO_SKIP` is set.
pub(crate) fn find(test: &str, name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("PANGEA_TEST_MODELS").map(PathBuf::from);
    let usual = || std::env::home_dir().map(|home| home.join(".cache/pangea/test-models"));
    let path = given.or_else(usual)?.join(name);
    if path.is_file() {
        return Some(path);
    }
    let why = format!("there is no {}; put it there or set PANGEA_TEST_MODELS to its folder", path.display());
    skip(test, &why);
    None
}
