//! Tests of the handle: certificates among nodes of one pool and of several, admission by a member, revocation, restarts.

use pangea_control::membership::join::{Reply, Request};

use super::*;
use crate::membership::door::JoinSession;
use crate::storage::State;

fn key(byte: u8) -> PoolKey {
    PoolKey::from_bytes(&[byte; 32])
}

fn holder(byte: u8, role: Role) -> Membership {
    Membership::holder(&Keypair::generate_ed25519(), &key(byte), role, "holder", Stored::default()).unwrap()
}

fn terms() -> Terms {
    Terms { role: Role::Member, member_for_s: 3600 }
}

/// What `member` grants to `joiner`, whose secret is that of a new token.
fn granted(member: &Membership, joiner: &Membership, token: &str) -> std::result::Result<Grant, Reply> {
    let secret = Token::parse(token).unwrap().secret;
    let request = Request::Token { name: "joiner".to_owned(), secret };
    match member.answer(&mut JoinSession::new(joiner.local(), None), request) {
        Reply::Granted(grant) => Ok(grant),
        other => Err(other),
    }
}

fn join(member: &Membership, joiner: &Membership) {
    let token = member.invite(terms(), 60, 1, false, Vec::new()).unwrap().token;
    joiner.join(granted(member, joiner, &token).unwrap(), Vec::new()).unwrap();
}

#[test]
fn nodes_of_one_pool_accept_each_others_certificates_and_others_do_not() {
    let (a, b, c) = (holder(1, Role::Member), holder(1, Role::Client), holder(2, Role::Member));
    let open = Membership::open(&Keypair::generate_ed25519());
    assert_eq!(a.check(&b.local(), &b.certificate()), Ok(Role::Client));
    assert_eq!(b.check(&a.local(), &a.certificate()), Ok(Role::Member));
    assert!(c.check(&a.local(), &a.certificate()).is_err());
    assert_eq!(a.check(&c.local(), &open.certificate()), Err(NotProven::NoCertificate));
    assert!(open.is_open() && open.check(&a.local(), &a.certificate()).is_err());
}

#[test]
fn a_certificate_is_renewed_once_a_day() {
    let node = holder(1, Role::Member);
    let first = node.certificate();
    assert_eq!(node.certificate(), first);
    let mut belonging = node.belonging();
    let Signer::Pool { issued_unix_s, .. } = &mut belonging.signer else { panic!("no signer") };
    *issued_unix_s -= RENEWED_AFTER.as_secs();
    drop(belonging);
    assert_ne!(node.certificate(), first);
}

#[test]
fn a_node_that_joins_belongs_to_the_other_pool_at_once_and_admits_others_to_it() {
    let (one, two, three) = (holder(1, Role::Member), holder(2, Role::Member), holder(3, Role::Member));
    let mut changes = two.changes();
    changes.borrow_and_update();
    join(&one, &two);
    assert!(changes.has_changed().unwrap() && changes.borrow().joined == 1);
    assert_eq!((two.pool(), two.is_open()), (one.pool(), false));
    assert_eq!(one.check(&two.local(), &two.certificate()), Ok(Role::Member));
    assert!(matches!(two.credentials(), Credentials::Certificate { .. }), "it has no key");
    join(&two, &three);
    assert_eq!(one.check(&three.local(), &three.certificate()), Ok(Role::Member));
    let overview = one.overview();
    let listed = overview.members.iter().find(|member| member.peer == three.local()).unwrap();
    assert_eq!(listed.admitted_by, Some(two.local()));
    assert_eq!(two.revoke(three.local()).unwrap_err().kind(), ErrorKind::Unauthorized);
}

#[test]
fn a_grant_for_another_node_or_by_another_pool_is_not_believed() {
    let (one, two, three) = (holder(1, Role::Member), holder(2, Role::Member), holder(3, Role::Member));
    let token = one.invite(terms(), 60, 3, false, Vec::new()).unwrap().token;
    let grant = granted(&one, &two, &token).unwrap();
    assert_eq!(three.join(grant.clone(), Vec::new()).unwrap_err().kind(), ErrorKind::VerificationFailed);
    let forged = Grant { pool: three.pool().unwrap(), ..grant };
    assert_eq!(two.join(forged, Vec::new()).unwrap_err().kind(), ErrorKind::VerificationFailed);
    assert_ne!(two.pool(), one.pool());
}

#[test]
fn a_revoked_node_is_told_so_and_takes_those_that_it_admitted_along() {
    let (one, two, three) = (holder(1, Role::Member), holder(2, Role::Member), holder(3, Role::Member));
    join(&one, &two);
    join(&two, &three);
    assert_eq!(one.check(&three.local(), &three.certificate()), Ok(Role::Member));
    one.revoke(two.local()).unwrap();
    assert!(one.is_revoked(&two.local()) && one.is_revoked(&three.local()));
    assert!(one.check(&three.local(), &three.certificate()).is_err());
    let token = one.invite(terms(), 60, 1, false, Vec::new()).unwrap().token;
    let refused = Reply::Refused(pangea_control::membership::JoinRefusal::Revoked);
    assert_eq!(granted(&one, &two, &token), Err(refused));
    // The others take the holder's word for it, and nobody else's.
    let told = one.changes().borrow().revocations.clone();
    let four = holder(1, Role::Member);
    let other_pool = holder(2, Role::Member);
    four.revocations_told(&told).unwrap();
    other_pool.revocations_told(&told).unwrap();
    assert!(four.is_revoked(&two.local()) && !other_pool.is_revoked(&two.local()));
    assert_eq!(one.revoke(one.local()).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_a_node_knows_of_its_pool_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let keypair = Keypair::generate_ed25519();
    let start = || {
        let stored = Stored::new(Some(State::open(folder.path())), Some(folder.path()));
        own_or_joined(&keypair, Role::Member, folder.path(), "node", stored, false).unwrap()
    };
    let revoked = PeerId::random();
    let (own, token) = {
        let (node, addresses) = start();
        assert!(addresses.is_empty());
        node.revoke(revoked).unwrap();
        (node.pool(), node.invite(terms(), 60, 1, false, Vec::new()).unwrap().token)
    };
    let joiner = holder(9, Role::Member);
    {
        let (node, _) = start();
        assert!(node.pool() == own && node.is_revoked(&revoked));
        let grant = granted(&node, &joiner, &token).unwrap();
        joiner.join(grant, Vec::new()).unwrap();
    }
    {
        let (node, _) = start();
        assert!(granted(&node, &holder(8, Role::Member), &token).is_err(), "the token is used");
        assert_eq!(node.overview().members.iter().filter(|member| member.name == "joiner").count(), 1);
        // The node joins another pool, and is in that one from then on.
        let other = holder(7, Role::Member);
        let token = other.invite(terms(), 60, 1, false, Vec::new()).unwrap().token;
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/7777".parse().unwrap();
        node.join(granted(&other, &node, &token).unwrap(), vec![address.clone()]).unwrap();
        drop(node);
        let (node, addresses) = start();
        assert_eq!((node.pool(), addresses), (other.pool(), vec![address]));
        assert!(!node.is_revoked(&revoked), "that was the other pool");
    }
    std::fs::write(folder.path().join("certificate"), "{}").unwrap();
    let stored = Stored::new(Some(State::open(folder.path())), Some(folder.path()));
    let error = own_or_joined(&keypair, Role::Member, folder.path(), "node", stored, false).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("move it away"), "{error}");
}

#[test]
fn a_node_whose_certificate_is_over_starts_only_to_join_again() {
    let folder = tempfile::tempdir().unwrap();
    let (keypair, member) = (Keypair::generate_ed25519(), holder(1, Role::Member));
    let brief = Terms { role: Role::Member, member_for_s: 0 };
    let (pool, chain) =
        member.issue_for(&mut member.belonging(), keypair.public().to_peer_id(), "node", brief).unwrap();
    KeptCertificate { pool, chain, member: "one".to_owned(), addresses: Vec::new() }.save(folder.path()).unwrap();
    let start = |rejoins| {
        let stored = Stored::new(Some(State::open(folder.path())), Some(folder.path()));
        own_or_joined(&keypair, Role::Member, folder.path(), "node", stored, rejoins)
    };
    let error = start(false).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("--join TOKEN"), "{error}");
    assert_ne!(start(true).unwrap().0.pool(), Some(pool), "in its own pool until it has joined again");
}

#[test]
fn only_the_holder_of_the_key_revokes_a_liar_and_only_once() {
    let (one, two, liar) = (holder(1, Role::Member), holder(2, Role::Member), PeerId::random());
    join(&one, &two);
    two.revoke_liar(liar).unwrap();
    Membership::open(&Keypair::generate_ed25519()).revoke_liar(liar).unwrap();
    assert!(!two.is_revoked(&liar));
    one.revoke_liar(liar).unwrap();
    let told = one.changes().borrow().revocations.clone();
    one.revoke_liar(liar).unwrap();
    one.revoke_liar(one.local()).unwrap();
    assert_eq!(one.changes().borrow().revocations, told);
    two.revocations_told(&told).unwrap();
    assert!(one.is_revoked(&liar) && two.is_revoked(&liar) && !one.is_revoked(&one.local()));
}
