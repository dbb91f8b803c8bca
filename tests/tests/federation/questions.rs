//! Questions with known answers: the vote answers more of them than its best member, with less than half of the samples.
//!
//! Every sample is the same bits on every machine, so the figures of this test are always the same ones.

use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_units::SplitMix64;
use serde_json::json;

use super::peers::{shares, votes_with};
use super::{CHAT, VOTE, ask, question, serving, text_of, with};

/// Members that answer every question once, each with its own seed.
const MEMBERS: usize = 8;

/// The vote may be worse than the mean of its members by this share of the questions, at the lower end of a 95 % interval.
const MARGIN: f64 = 0.005;

/// Resamples of the questions for that interval.
const RESAMPLES: usize = 2000;

/// Questions with the answers that count, in lower case and without punctuation.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("What is the opposite of cold?", &["hot", "warm"]),
    ("What is the opposite of open?", &["closed", "close", "shut"]),
    ("What is the opposite of black?", &["white"]),
    ("What is the opposite of day?", &["night"]),
    ("What is the opposite of left?", &["right"]),
    ("What is the opposite of young?", &["old"]),
    ("What is the opposite of rich?", &["poor"]),
    ("What is the opposite of full?", &["empty"]),
    ("What is the opposite of wet?", &["dry"]),
    ("What is the opposite of hard?", &["soft", "easy"]),
    ("What is the opposite of tall?", &["short"]),
    ("What is the opposite of long?", &["short"]),
    ("What is the opposite of first?", &["last"]),
    ("What is the opposite of win?", &["lose", "loss"]),
    ("What is the opposite of true?", &["false"]),
    ("What is the opposite of good?", &["bad", "evil"]),
    ("What is the opposite of early?", &["late"]),
    ("What is the opposite of inside?", &["outside"]),
    ("What is the opposite of love?", &["hate"]),
    ("What is the opposite of buy?", &["sell"]),
    ("What is the opposite of push?", &["pull"]),
    ("What is the opposite of strong?", &["weak"]),
    ("What is the opposite of thin?", &["thick", "fat"]),
    ("What is the opposite of clean?", &["dirty"]),
    ("What is the opposite of near?", &["far"]),
    ("What is the opposite of above?", &["below"]),
    ("What is the opposite of before?", &["after"]),
    ("What is the opposite of always?", &["never"]),
    ("What is the opposite of begin?", &["end"]),
    ("What is the opposite of north?", &["south"]),
    ("What is the opposite of east?", &["west"]),
    ("What is the opposite of war?", &["peace"]),
    ("What is the opposite of loud?", &["quiet", "soft", "silent"]),
    ("What is the opposite of sweet?", &["sour", "bitter"]),
    ("What is the opposite of alive?", &["dead"]),
    ("What is the capital of Sweden?", &["stockholm"]),
    ("What is the capital of Finland?", &["helsinki"]),
    ("What is the capital of Denmark?", &["copenhagen"]),
    ("What is the capital of Ireland?", &["dublin"]),
    ("What is the capital of Belgium?", &["brussels"]),
    ("What is the capital of the Netherlands?", &["amsterdam"]),
    ("What is the capital of Turkey?", &["ankara"]),
    ("What is the capital of India?", &["new delhi", "delhi"]),
    ("What is the capital of England?", &["london"]),
    ("What is the capital of Mexico?", &["mexico city"]),
    ("What is the capital of Argentina?", &["buenos aires"]),
    ("What is the capital of Iran?", &["tehran"]),
    ("What is the capital of Iraq?", &["baghdad"]),
    ("What is the capital of South Korea?", &["seoul"]),
    ("What is the capital of Vietnam?", &["hanoi"]),
    ("What is the capital of Indonesia?", &["jakarta"]),
    ("What is the capital of Cameroon?", &["yaounde", "yaoundé"]),
    ("What is the capital of Chile?", &["santiago"]),
    ("What language is spoken in France?", &["french"]),
    ("What language is spoken in Germany?", &["german"]),
    ("What language is spoken in Japan?", &["japanese"]),
    ("What language is spoken in Italy?", &["italian"]),
    ("What language is spoken in China?", &["chinese", "mandarin"]),
    ("What language is spoken in Russia?", &["russian"]),
    ("What language is spoken in Portugal?", &["portuguese"]),
    ("What language is spoken in Poland?", &["polish"]),
    ("What language is spoken in Greece?", &["greek"]),
    ("What language is spoken in Sweden?", &["swedish"]),
    ("What language is spoken in Turkey?", &["turkish"]),
    ("What language is spoken in Spain?", &["spanish"]),
    ("What language is spoken in Argentina?", &["spanish"]),
    ("What language is spoken in Australia?", &["english"]),
    ("On which continent is France?", &["europe"]),
    ("On which continent is Japan?", &["asia"]),
    ("On which continent is Egypt?", &["africa"]),
    ("On which continent is Brazil?", &["south america"]),
    ("On which continent is Canada?", &["north america"]),
    ("On which continent is Kenya?", &["africa"]),
    ("On which continent is India?", &["asia"]),
    ("On which continent is Spain?", &["europe"]),
    ("On which continent is Peru?", &["south america"]),
    ("On which continent is China?", &["asia"]),
    ("What color is grass?", &["green"]),
    ("What color is snow?", &["white"]),
    ("What color is blood?", &["red"]),
    ("What color is coal?", &["black"]),
    ("What color is the sun?", &["yellow"]),
    ("What color is a lemon?", &["yellow"]),
    ("What color is milk?", &["white"]),
    ("What color is an orange?", &["orange"]),
    ("What color is a tomato?", &["red"]),
    ("What color is the ocean?", &["blue"]),
    ("What is 1 + 2?", &["3"]),
    ("What is 2 + 2?", &["4"]),
    ("What is 3 + 3?", &["6"]),
    ("What is 5 + 5?", &["10"]),
    ("What is 6 + 2?", &["8"]),
    ("What is 4 + 1?", &["5"]),
    ("What is 10 + 10?", &["20"]),
    ("What is 7 + 1?", &["8"]),
    ("What is 8 + 2?", &["10"]),
    ("What is 2 + 5?", &["7"]),
];

/// Whether an answer is one of those that count, whatever its case and punctuation.
fn is_right(answer: &str, right: &[&str]) -> bool {
    let answer = answer.trim().trim_end_matches(['.', '!']).to_lowercase();
    right.contains(&answer.as_str())
}

/// What each member answers to a question.
fn members(node: &Node, text: &str) -> Vec<String> {
    let asked = with(question(text), json!({"n": MEMBERS, "strategy": "none"}));
    let answer = ask(node, CHAT, &asked);
    let choices = answer["choices"].as_array().unwrap().iter();
    choices.map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
}

/// The lower end of the 95 % bootstrap interval of the mean.
fn lower_bound(differences: &[f64]) -> f64 {
    let mut random = SplitMix64::new(1);
    let mut mean = || {
        let drawn = (0..differences.len()).map(|_| differences[random.index(differences.len())]);
        drawn.sum::<f64>() / differences.len() as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    means[RESAMPLES / 40]
}

/// What came of a vote on every question.
#[derive(Default)]
struct Outcome {
    /// Whether the vote on each question was right.
    right: Vec<bool>,
    samples: u64,
    samples_max: u64,
    /// Samples that other nodes computed.
    remote: usize,
}

/// Puts every question to the vote.
fn votes(node: &Node) -> Outcome {
    let mut outcome = Outcome::default();
    for (text, right) in QUESTIONS {
        let vote = ask(node, VOTE, &question(text));
        outcome.samples += vote["federation"]["samples"].as_u64().unwrap();
        outcome.samples_max += vote["federation"]["samples_max"].as_u64().unwrap();
        outcome.remote +=
            shares(&vote).iter().filter(|(peer, _)| **peer != node.peer).map(|(_, count)| count).sum::<usize>();
        outcome.right.push(is_right(text_of(&vote), right));
    }
    outcome
}

/// Asserts that the votes were at least as good as the best member, and took at most half of the samples.
fn helps(outcome: &Outcome, members: &[[bool; MEMBERS]]) {
    let votes_right = outcome.right.iter().filter(|right| **right).count();
    let of_member = |member: usize| members.iter().filter(|each| each[member]).count();
    let members_right: Vec<usize> = (0..MEMBERS).map(of_member).collect();
    let best = members_right.iter().max().unwrap();
    let share = |each: &[bool; MEMBERS]| each.iter().filter(|right| **right).count() as f64 / MEMBERS as f64;
    let differences: Vec<f64> =
        outcome.right.iter().zip(members).map(|(right, each)| f64::from(u8::from(*right)) - share(each)).collect();
    let bound = lower_bound(&differences);
    let used = outcome.samples as f64 / outcome.samples_max as f64;
    println!(
        "{votes_right} of {} by vote, {best} by the best member, {members_right:?}; at least {:+.1} points; {:.0} % of samples, {} of them of other nodes",
        QUESTIONS.len(),
        100.0 * bound,
        100.0 * used,
        outcome.remote
    );
    assert!(votes_right >= *best, "{votes_right} by vote, {members_right:?} by its members");
    assert!(bound >= -MARGIN, "{bound}");
    assert!(used <= 0.5, "{used} of the samples");
}

#[test]
fn a_vote_is_at_least_as_good_as_its_best_member_and_saves_half_of_the_samples_on_one_node_and_several() {
    let cluster = Cluster::new();
    let name = "a_vote_is_at_least_as_good_as_its_best_member_and_saves_half_of_the_samples_on_one_node_and_several";
    let Some(node) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    let answered = QUESTIONS.iter().map(|(text, right)| {
        let answers = members(&node, text);
        std::array::from_fn(|member| is_right(&answers[member], right))
    });
    let answered: Vec<[bool; MEMBERS]> = answered.collect();
    let alone = votes(&node);
    helps(&alone, &answered);
    assert_eq!(alone.remote, 0);
    let joins = |builder: NodeBuilder| builder.flag("--federation").with("--peer", &node.address);
    let others: Vec<Node> =
        ["two", "three"].into_iter().map(|name| serving(&cluster, name, name, joins).unwrap()).collect();
    votes_with(&node, others.len());
    let outcome = votes(&node);
    helps(&outcome, &answered);
    assert!(outcome.remote as u64 * 10 >= outcome.samples, "{} of {} samples", outcome.remote, outcome.samples);
}
