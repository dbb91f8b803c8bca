//! What is asked of the person at a node's terminal about belonging: one question at a time, each once, the most urgent first.
//! Pure: open matters and typed lines go in, text and decisions come out. Nothing is read or printed here.

use libp2p_identity::PeerId;

use super::pending::SixDigits;

/// What is to be decided about another node, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matter {
    /// Whether to join the pool of a member that offers it, whose screen shows these digits.
    Join(SixDigits),
    /// Whether to admit a node that asks to join, whose screen shows these digits.
    Admit(SixDigits),
    /// Whether to admit a node of another pool; digits are compared next.
    Compare,
}

impl Matter {
    fn urgency(self) -> u8 {
        match self {
            Matter::Join(_) => 0,
            Matter::Admit(_) => 1,
            Matter::Compare => 2,
        }
    }
}

/// A matter that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The other node.
    pub peer: PeerId,
    /// Its name.
    pub name: String,
    /// What is to be decided.
    pub matter: Matter,
}

impl Question {
    /// The question as a line of text.
    pub fn text(&self) -> String {
        let Question { peer, name, matter } = self;
        let id = peer.to_string();
        let end = id.get(id.len().saturating_sub(4)..).unwrap_or(&id);
        match matter {
            Matter::Join(digits) => format!(
                "{name} (…{end}) offers to admit this node to its pool, in place of the pool that it is in now. Does the screen of \
                 {name} show {digits}? [y/n]"
            ),
            Matter::Admit(digits) => {
                format!("{name} (…{end}) asks to join this pool. Does the screen of {name} show {digits}? [y/n]")
            }
            Matter::Compare => {
                format!("{name} (…{end}) is on this network and belongs to another pool. Admit it to this pool? [y/n]")
            }
        }
    }
}

/// What follows from a typed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// The person says yes.
    Yes(Question),
    /// The person says no.
    No(Question),
    /// The line is no answer; the question still stands.
    Unclear,
    /// Nothing was asked.
    Nothing,
}

/// The questions of one terminal.
#[derive(Debug, Default)]
pub struct Questions {
    current: Option<Question>,
    /// Matters that were answered and are still open: what follows from an answer takes a while.
    answered: Vec<Question>,
}

impl Questions {
    /// Takes in the matters that are open now; returns the question to ask next, if it is another one than before. A more urgent
    /// matter takes the place of one that is not answered yet, which is asked again later.
    pub fn open(&mut self, matters: &[Question]) -> Option<&Question> {
        self.answered.retain(|question| matters.contains(question));
        if self.current.as_ref().is_some_and(|question| !matters.contains(question)) {
            self.current = None;
        }
        let unanswered = matters.iter().filter(|question| !self.answered.contains(question));
        let next = unanswered.min_by_key(|question| question.matter.urgency())?;
        let is_more_urgent = |current: &Question| next.matter.urgency() < current.matter.urgency();
        if !self.current.as_ref().is_none_or(is_more_urgent) {
            return None;
        }
        self.current = Some(next.clone());
        self.current.as_ref()
    }

    /// A line was typed.
    pub fn typed(&mut self, line: &str) -> Typed {
        let Some(question) = self.current.take() else { return Typed::Nothing };
        let is_yes = match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => true,
            "n" | "no" => false,
            _ => {
                self.current = Some(question);
                return Typed::Unclear;
            }
        };
        self.answered.push(question.clone());
        if is_yes { Typed::Yes(question) } else { Typed::No(question) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    fn question(number: u64, matter: Matter) -> Question {
        Question { peer: peer(number), name: format!("mac{number}"), matter }
    }

    fn digits(text: &str) -> SixDigits {
        SixDigits::parse(text).unwrap()
    }

    #[test]
    fn a_matter_is_asked_once_and_answered_by_y_or_n_alone() {
        let mut questions = Questions::default();
        let admit = question(2, Matter::Admit(digits("048151")));
        assert_eq!(questions.typed("y"), Typed::Nothing);
        assert_eq!(questions.open(std::slice::from_ref(&admit)), Some(&admit));
        assert_eq!(questions.open(std::slice::from_ref(&admit)), None, "it has been asked");
        for line in ["", "yep", "048151"] {
            assert_eq!(questions.typed(line), Typed::Unclear);
        }
        assert_eq!(questions.typed(" Yes\n"), Typed::Yes(admit.clone()));
        assert_eq!(questions.open(std::slice::from_ref(&admit)), None, "it has been answered");
        assert_eq!(questions.typed("n"), Typed::Nothing);
        assert_eq!(questions.open(&[]), None);
        assert_eq!(questions.open(std::slice::from_ref(&admit)), Some(&admit), "it has come up again");
        assert_eq!(questions.typed("n"), Typed::No(admit));
        assert!(questions.answered.len() == 1 && questions.open(&[]).is_none() && questions.answered.is_empty());
    }

    #[test]
    fn what_is_more_urgent_is_asked_first_and_what_is_over_is_not_asked_any_more() {
        let mut questions = Questions::default();
        let compare = question(2, Matter::Compare);
        let join = question(3, Matter::Join(digits("048151")));
        assert_eq!(questions.open(std::slice::from_ref(&compare)), Some(&compare));
        let both = [compare.clone(), join.clone()];
        assert_eq!(questions.open(&both), Some(&join), "before the first one is answered");
        assert_eq!(questions.typed("n"), Typed::No(join));
        assert_eq!(questions.open(&both), Some(&compare));
        assert_eq!(questions.open(&[]), None);
        assert_eq!(questions.typed("y"), Typed::Nothing, "nobody asks any more");
    }

    #[test]
    fn other_digits_are_another_question() {
        let mut questions = Questions::default();
        let first = question(2, Matter::Admit(digits("048151")));
        questions.open(std::slice::from_ref(&first));
        let second = question(2, Matter::Admit(digits("048152")));
        assert_eq!(questions.open(std::slice::from_ref(&second)), Some(&second));
        assert!(second.text().contains("048 152") && second.text().contains("mac2"));
        assert!(question(2, Matter::Compare).text().contains("another pool"));
    }
}
