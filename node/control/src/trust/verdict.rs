//! How far an answer can be trusted (DESIGN §6). A value only; checks give it.

/// How far an answer can be trusted, strongest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Computed by the coordinator itself.
    #[default]
    Local,
    /// Proved.
    Verified,
    /// Every stage's part was computed again by another node, and was the same.
    Audited,
    /// Compared within a tolerance.
    ToleranceChecked,
    /// Signed at most.
    Unchecked,
}

impl Verdict {
    /// Every verdict, strongest first.
    pub const ALL: [Verdict; 5] =
        [Verdict::Local, Verdict::Verified, Verdict::Audited, Verdict::ToleranceChecked, Verdict::Unchecked];

    /// The name as every surface shows it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Local => "local",
            Verdict::Verified => "verified",
            Verdict::Audited => "audited",
            Verdict::ToleranceChecked => "tolerance-checked",
            Verdict::Unchecked => "unchecked",
        }
    }

    /// The verdict of that name.
    pub fn from_name(name: &str) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}
