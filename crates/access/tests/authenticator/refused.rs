//! Refused credentials are limited by address.

use std::net::IpAddr;
use std::time::Duration;

use access::{ApiKey, Authenticator, NotAuthenticated};
use testkit::wait::eventually;

use crate::signed::signed_at;
use crate::{Fixture, GRACE, accepted, here};

/// Unknown keys of this address, until one is not looked up; returns how many were.
async fn burst_of_unknown_keys(replica: &Authenticator, address: IpAddr) -> usize {
    for n in 0..100 {
        match replica.caller(&ApiKey::generate().unwrap(), address).await {
            Err(NotAuthenticated::Unknown) => {}
            Err(NotAuthenticated::TooMany(wait)) if wait <= Duration::from_secs(1) => return n,
            other => panic!("{other:?}"),
        }
    }
    panic!("100 unknown keys were looked up");
}

#[tokio::test]
async fn after_a_burst_of_unknown_keys_an_address_waits_and_postgresql_is_not_asked() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica_with(GRACE, [1, 5]);
    let elsewhere: IpAddr = "192.0.2.8".parse().unwrap();
    let (remembered, valid) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    accepted(&replica, &remembered).await.unwrap();
    // One more, if a second passes meanwhile.
    let looked_up = burst_of_unknown_keys(&replica, here()).await;
    assert!((5..8).contains(&looked_up), "{looked_up}");
    // Also what is valid would have to be looked up.
    let stopped = replica.caller(&valid, here()).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
    accepted(&replica, &remembered).await.unwrap();
    replica.caller(&valid, elsewhere).await.unwrap();
    // It is remembered now, whatever the address.
    accepted(&replica, &valid).await.unwrap();
    let next = fixture.key(|_| {}).await;
    eventually("the address to be accepted again", Duration::from_secs(10), async || {
        accepted(&replica, &next).await.map(drop)
    })
    .await;
    // Those at once are all looked up, and the address waits for the longer: 95 s.
    let unknown: Vec<_> = (0..100).map(|_| ApiKey::generate().unwrap()).collect();
    futures_util::future::join_all(unknown.iter().map(|key| accepted(&replica, key))).await;
    // Without PostgreSQL the answer is the same: it is not asked.
    fixture.proxy.cut().await.unwrap();
    let stopped = replica.caller(&ApiKey::generate().unwrap(), here()).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
}

#[tokio::test]
async fn who_signed_lately_goes_on_signing_behind_an_address_of_many_wrong_signatures() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica_with(GRACE, [1, 5]);
    let (signer, newcomer) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    let signed = async |key: &ApiKey, n: usize| {
        let request = signed_at(key, 0, &format!("nonce-of-the-request-{n}"));
        replica.signed(&request, ("GET", "/list?a=b"), here()).await
    };
    signed(&signer, 0).await.unwrap();
    let refused = async |key: &ApiKey| {
        for n in 0..100 {
            match signed(key, 1_000 + n).await {
                Err(NotAuthenticated::Signature) => {}
                Err(NotAuthenticated::TooMany(_)) => return n,
                other => panic!("{other:?}"),
            }
        }
        panic!("100 wrong signatures were checked");
    };
    assert!((5..8).contains(&refused(&ApiKey::generate().unwrap()).await));
    for n in 1..50 {
        signed(&signer, n).await.unwrap();
    }
    let stopped = signed(&newcomer, 0).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
    // Wrong signatures that name the signer are limited, too.
    let forged = ApiKey::with_secret(signer.id()).unwrap();
    assert!((5..8).contains(&refused(&forged).await));
}
