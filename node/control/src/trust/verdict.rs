//! How far an answer can be trusted (DESIGN §6). Values only; checks produce them.

/// How far an answer can be trusted, strongest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Computed by the coordinator itself.
    #[default]
    Local,
    /// Checked exactly.
    Verified,
    /// Every stage's output was recomputed by another node and matched.
    Audited,
    /// Compared within a tolerance.
    ToleranceChecked,
    /// Not checked; signed at most.
    Unchecked,
}

impl Verdict {
    /// Every verdict, strongest first.
    pub const ALL: [Verdict; 5] =
        [Verdict::Local, Verdict::Verified, Verdict::Audited, Verdict::ToleranceChecked, Verdict::Unchecked];

    /// Name in every API.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Local => "local",
            Verdict::Verified => "verified",
            Verdict::Audited => "audited",
            Verdict::ToleranceChecked => "tolerance-checked",
            Verdict::Unchecked => "unchecked",
        }
    }

    /// The verdict with this name.
    pub fn from_name(name: &str) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_is_read_back_by_its_name_and_the_strongest_is_the_least() {
        let names = Verdict::ALL.map(Verdict::name);
        assert_eq!(names, ["local", "verified", "audited", "tolerance-checked", "unchecked"]);
        assert_eq!(names.map(Verdict::from_name), Verdict::ALL.map(Some));
        assert_eq!(Verdict::from_name("trusted"), None);
        assert!(Verdict::ALL.is_sorted());
    }
}
