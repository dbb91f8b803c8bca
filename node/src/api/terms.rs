//! What the owner of a node may say of invitations and certificates, checked once for every API.

use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::{Role, SixDigits, Terms, invitation};

/// Longest validity of a token or certificate in seconds: a hundred years.
const MAX_VALIDITY_S: u64 = 100 * 365 * 24 * 3600;

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// The terms of a node that is admitted.
///
/// # Errors
/// `InvalidInput` for an unknown role and a validity of no time, or of more than a hundred years.
pub(super) fn terms(role: &str, member_for_s: u64) -> Result<Terms> {
    let role = Role::named(role).ok_or_else(|| invalid(format!("{role} is no role: use member or client")))?;
    check_validity(member_for_s)?;
    Ok(Terms { role, member_for_s })
}

/// # Errors
/// `InvalidInput` for a validity of no time, or of more than a hundred years.
pub(super) fn check_validity(seconds: u64) -> Result<()> {
    let is_right = (1..=MAX_VALIDITY_S).contains(&seconds);
    is_right.then_some(()).ok_or_else(|| invalid(format!("{seconds} s is no validity: use 1 s to 100 years")))
}

/// # Errors
/// `InvalidInput` for an invitation for nobody, or for too many.
pub(super) fn check_uses(uses: u32) -> Result<()> {
    let is_right = (1..=invitation::MAX_USES).contains(&uses);
    let wrong = || invalid(format!("an invitation is for 1 to {} nodes, not {uses}", invitation::MAX_USES));
    is_right.then_some(()).ok_or_else(wrong)
}

/// Six digits that a person has compared.
///
/// # Errors
/// `InvalidInput` for anything else.
pub(super) fn digits(text: &str) -> Result<SixDigits> {
    SixDigits::parse(text).ok_or_else(|| invalid(format!("{text:?} are not six digits")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_allowed_and_what_is_beyond_them_is_not() {
        assert!(terms("member", 1).is_ok() && terms("client", MAX_VALIDITY_S).is_ok());
        for (role, seconds) in [("member", 0), ("member", MAX_VALIDITY_S + 1), ("king", 5), ("", 5)] {
            assert_eq!(terms(role, seconds).unwrap_err().kind(), ErrorKind::InvalidInput, "{role} {seconds}");
        }
        assert!(check_uses(1).is_ok() && check_uses(invitation::MAX_USES).is_ok());
        assert!(check_uses(0).is_err() && check_uses(invitation::MAX_USES + 1).is_err());
        assert!(digits("048 151").is_ok() && digits("04815").is_err() && digits("04815a").is_err());
    }
}
