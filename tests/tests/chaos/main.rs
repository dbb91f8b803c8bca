//! Real nodes on hosts of their own while things go wrong: nodes are killed, stopped and drained, cables are unplugged,
//! packets are lost one way, bytes are damaged, a disk is full, a memory limit holds. All the while every node is asked
//! for products and answers. Every request that a node accepted is answered correctly, once, or refused clearly; when the
//! faults are over, the pool works as before.
//!
//! | file | owns |
//! |---|---|
//! | `faults` | what goes wrong, drawn from a seed, and how it is put right |
//! | `hosts` | the nodes, their networks, disks and memory limits |
//! | `load` | the requests, and the judgement of every reply |
//!
//! `scripts/setup.sh chaos [FAULTS]` runs the long form; `PANGEA_CHAOS_SEED` draws other faults.
#![allow(clippy::unwrap_used)]

mod faults;
mod hosts;
mod load;

use std::time::{Duration, Instant};

use faults::{Disorder, Fault};
use hosts::Hosts;
use load::Load;
use pangea_tests::cluster::Cluster;
use pangea_tests::namespaces::Namespaces;
use pangea_tests::process::eventually;
use pangea_tests::skip::skip;
use pangea_tests::test_model::{SMOLLM2, file_of};
use pangea_units::SplitMix64;

/// Environment variables: how many faults, and the seed that they are drawn from.
const FAULTS: &str = "PANGEA_CHAOS_FAULTS";
const SEED: &str = "PANGEA_CHAOS_SEED";

/// Faults of the short form: every kind once or more.
const FAULTS_SHORT: u64 = 16;

/// Faults that are there at the same time, at most: of four nodes two are always undisturbed.
const AT_ONCE: usize = 2;

/// Milliseconds between two faults. Passing time is what this test is about.
const PAUSE_MS: std::ops::Range<u64> = 100..900;

#[test]
fn every_request_is_answered_correctly_or_refused_clearly_whatever_fails() {
    const TEST: &str = "every_request_is_answered_correctly_or_refused_clearly_whatever_fails";
    let Some(model) = file_of(SMOLLM2, TEST) else { return };
    let Some(network) = Namespaces::for_test(TEST, hosts::COUNT) else { return };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (count, seed) = (number(FAULTS).unwrap_or(FAULTS_SHORT), number(SEED).unwrap_or(1));
    println!("{count} faults from seed {seed}");

    let cluster = Cluster::alone();
    let mut hosts = match Hosts::start(&cluster, &network, &model) {
        Ok(hosts) => hosts,
        Err(why) => return skip(TEST, &why),
    };
    whole(&hosts);
    let load = Load::start(&cluster, &hosts, &model);
    load.everything_is_answered();

    let mut random = SplitMix64::new(seed);
    let mut disorder = Disorder::default();
    let begin = Instant::now();
    for number in 0..count {
        while disorder.len() >= AT_ONCE {
            disorder.end_next(&mut hosts, &network);
        }
        // The first ones are one of each kind.
        let fault = Fault::draw(&mut random, usize::try_from(number).ok(), &disorder);
        disorder.begin(fault, &mut hosts, &network, &mut random);
        std::thread::sleep(Duration::from_millis(random.within(PAUSE_MS)));
        disorder.end_due(&mut hosts, &network);
        hosts.nobody_ended();
        load.nobody_failed();
    }
    while disorder.len() > 0 {
        disorder.end_next(&mut hosts, &network);
    }
    println!("{count} faults in {:.0} s: {disorder}", begin.elapsed().as_secs_f64());

    whole(&hosts);
    load.everything_is_answered();
    let tally = load.stop();
    println!("{tally}");
    tally.says_something();
    for host in hosts.iter() {
        host.is_idle_again();
        assert_eq!(host.count("quarantined"), 0, "nobody lied: {}", host.name());
        assert_eq!(host.count("panicked"), 0, "{}", host.name());
        assert_eq!(host.terminate(), Some(0), "{}", host.name());
    }
}

/// Waits until every node sees every other one and all agree on the master.
fn whole(hosts: &Hosts) {
    eventually("every node sees the whole pool under one master", || {
        let views: Vec<_> = hosts.iter().filter_map(hosts::Host::pool).collect();
        views.len() == hosts::COUNT
            && views.iter().all(|(nodes, master)| *nodes == hosts::COUNT && master.is_some() && *master == views[0].1)
    });
}
