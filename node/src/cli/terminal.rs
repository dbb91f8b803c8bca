//! What the terminal behind a stream can show: colours, and lines that are drawn again in place. Nothing is written here.

use std::ffi::OsStr;
use std::io::IsTerminal;

use anstream::{AutoStream, ColorChoice, stream::RawStream};

/// Whether text on `stream` may be coloured: a terminal that is not dumb, unless the environment says otherwise (`NO_COLOR`,
/// `CLICOLOR`, `CLICOLOR_FORCE`). The rules are those of the command line's help and errors.
pub(super) fn colours(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Whether lines on `stream` can be drawn again in place: a terminal that is not dumb.
pub(super) fn redraws(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && moves_cursor(std::env::var_os("TERM").as_deref())
}

/// Whether a terminal of this type moves its cursor. A terminal without a type is taken for a dumb one, as by most programs.
fn moves_cursor(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| term != "dumb" && !term.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dumb_terminal_and_one_without_a_type_do_not_move_the_cursor() {
        for (term, moves) in [(Some("xterm-256color"), true), (Some("dumb"), false), (Some(""), false), (None, false)] {
            assert_eq!(moves_cursor(term.map(OsStr::new)), moves, "{term:?}");
        }
    }
}
