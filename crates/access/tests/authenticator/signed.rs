//! Requests that are signed with a key.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use access::{
    ApiKey, Authenticator, Caller, NotAuthenticated, RequestSignature, SCHEME, Scope, authorization,
};
use chrono::DateTime;

use crate::{Fixture, GRACE, START, actor, here};

/// What a client sends for `GET /list`, at the time of the tests' clock moved by so many seconds.
pub(crate) fn signed_at(key: &ApiKey, seconds: i64, nonce: &str) -> RequestSignature {
    let now = START / 1_000_000 + seconds;
    let header = authorization(key, ("GET", "/list?a=b"), b"", now, nonce);
    RequestSignature::parse(header.strip_prefix(SCHEME).unwrap().trim()).unwrap()
}

pub(crate) async fn accepted_signed(
    replica: &Authenticator,
    signature: &RequestSignature,
) -> Result<Arc<Caller>, String> {
    let signed = replica.signed(signature, ("GET", "/list?a=b"), here()).await;
    signed.map_err(|error| error.to_string())
}

const NONCE: &str = "nonce-of-the-first-request";

#[tokio::test]
async fn a_signed_request_is_accepted_once_whatever_the_replica() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.replica(GRACE), fixture.replica(GRACE));
    let key = fixture.key(|_| {}).await;
    let request = signed_at(&key, 0, NONCE);
    let caller = accepted_signed(&first, &request).await.unwrap();
    assert_eq!((caller.key.as_str(), caller.may(Scope::Read)), (key.id(), true));
    for replica in [&first, &second] {
        let replayed = accepted_signed(replica, &request).await.unwrap_err();
        assert!(replayed.contains("nonce was received before"), "{replayed}");
    }
    // Another key may use the same nonce; the same key signs other requests.
    let other = fixture.key(|_| {}).await;
    accepted_signed(&second, &signed_at(&other, 0, NONCE)).await.unwrap();
    // Of several at once one is accepted.
    let request = signed_at(&key, 0, "nonce-of-the-second-request");
    let replicas = [&first, &second, &first, &second, &first, &second];
    let all = replicas.map(|replica| accepted_signed(replica, &request));
    let accepted = futures_util::future::join_all(all).await.iter().filter(|it| it.is_ok()).count();
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn a_signature_of_something_else_or_of_another_time_is_refused() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let (key, other) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    for (seconds, is_accepted) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let request = signed_at(&key, seconds, &format!("nonce-of-the-second-{seconds}"));
        let accepted = accepted_signed(&replica, &request).await;
        assert_eq!(accepted.is_ok(), is_accepted, "{seconds}: {accepted:?}");
    }
    let request = signed_at(&key, 0, NONCE);
    for (method, target) in [("POST", "/list?a=b"), ("GET", "/list?a=c"), ("GET", "/list")] {
        let refused = replica.signed(&request, (method, target), here()).await.unwrap_err();
        assert!(matches!(refused, NotAuthenticated::Signature), "{method} {target}: {refused}");
    }
    // The parts of the header belong together.
    let header = authorization(&key, ("GET", "/list?a=b"), b"", START / 1_000_000, NONCE);
    for (from, to) in [
        (key.id(), other.id()),
        (key.id(), "AAAAAAAA"),
        (NONCE, "another-nonce-as-long"),
        ("digest=e", "digest=f"),
        ("timestamp=1700000000", "timestamp=1700000001"),
    ] {
        let changed = header.replacen(from, to, 1);
        assert_ne!(changed, header);
        let changed =
            RequestSignature::parse(changed.strip_prefix(SCHEME).unwrap().trim()).unwrap();
        let refused = replica.signed(&changed, ("GET", "/list?a=b"), here()).await.unwrap_err();
        assert!(matches!(refused, NotAuthenticated::Signature), "{from}: {refused}");
    }
    // A refused one uses no nonce up.
    accepted_signed(&replica, &request).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_rotated_revoked_or_restricted_signs_as_it_is_accepted() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let rotated = ApiKey::with_secret(key.id()).unwrap();
    let until = DateTime::from_timestamp(START / 1_000_000 + 60, 0).unwrap();
    let done = fixture.owner.rotate_api_key(key.id(), rotated.secret_hash(), until, &actor()).await;
    assert!(done.unwrap().is_some());
    for (n, key) in [&key, &rotated].into_iter().enumerate() {
        accepted_signed(&replica, &signed_at(key, 0, &format!("nonce-of-key-number-{n}")))
            .await
            .unwrap();
    }
    fixture.micros.fetch_add(61_000_000, Ordering::Relaxed);
    let old = accepted_signed(&replica, &signed_at(&key, 61, "nonce-of-the-old-secret")).await;
    assert!(old.unwrap_err().contains("expired"));
    fixture.revoke(&rotated).await;
    let revoked =
        accepted_signed(&replica, &signed_at(&rotated, 61, "nonce-of-a-revoked-key")).await;
    assert!(revoked.unwrap_err().contains("revoked"));
    let elsewhere = fixture.key(|new| new.networks = vec!["10.0.0.0/8".to_owned()]).await;
    let refused = accepted_signed(&replica, &signed_at(&elsewhere, 61, NONCE)).await.unwrap_err();
    assert!(refused.contains("address"), "{refused}");
    // Nonces cannot be checked without PostgreSQL: closed, whatever was accepted before.
    let other = fixture.key(|_| {}).await;
    accepted_signed(&replica, &signed_at(&other, 61, NONCE)).await.unwrap();
    fixture.proxy.cut().await.unwrap();
    let away = accepted_signed(&replica, &signed_at(&other, 61, "nonce-while-it-is-cut")).await;
    assert!(away.unwrap_err().contains("PostgreSQL is unavailable"));
}

#[tokio::test]
async fn a_signed_request_does_not_wait_for_who_has_locked_the_row_of_its_key() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let mut held = fixture.held("SELECT FROM api_keys FOR UPDATE").await;
    accepted_signed(&replica, &signed_at(&key, 0, NONCE)).await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut held).await.unwrap();
    let last_used = async || fixture.owner.api_keys(None).await.unwrap()[0].last_used_at;
    assert_eq!(last_used().await, None);
    accepted_signed(&replica, &signed_at(&key, 0, "nonce-of-the-next-request")).await.unwrap();
    assert!(last_used().await.is_some());
}

#[tokio::test]
async fn after_a_restore_that_an_operator_reports_requests_signed_before_are_refused() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let before = signed_at(&key, 0, NONCE);
    accepted_signed(&replica, &before).await.unwrap();
    fixture.owner.invalidate_hot_copies(&actor(), 1).await.unwrap();
    // As it is where a snapshot of the disk lacks it.
    fixture.env.psql("DELETE FROM api_nonces").await.unwrap();
    let refused = accepted_signed(&replica, &before).await.unwrap_err();
    assert!(refused.contains("sign it again"), "{refused}");
    // In the year 2100.
    fixture.micros.store(4_102_444_800_000_000, Ordering::Relaxed);
    let seconds = 4_102_444_800 - START / 1_000_000;
    accepted_signed(&replica, &signed_at(&key, seconds, NONCE)).await.unwrap();
}

#[tokio::test]
async fn nonces_are_removed_when_their_timestamps_are_too_old() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    for n in 0..5 {
        accepted_signed(&replica, &signed_at(&key, 0, &format!("nonce-of-the-request-{n}")))
            .await
            .unwrap();
    }
    let kept = "SELECT bool_and(expires_at BETWEEN now() + interval '10 min' AND now() + interval '12 min') FROM api_nonces";
    assert_eq!(fixture.env.psql(kept).await.unwrap(), "t");
    fixture.env.psql("UPDATE api_nonces SET expires_at = now() - interval '1 s'").await.unwrap();
    accepted_signed(&replica, &signed_at(&key, 0, "nonce-of-the-last-request")).await.unwrap();
    assert_eq!(fixture.env.psql("SELECT count(*) FROM api_nonces").await.unwrap(), "1");
}
