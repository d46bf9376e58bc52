//! Sockets over loopback, on ports that the system picks.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(5);

async fn connected(congestion: Option<&str>) -> (TcpStream, SocketFacts, TcpStream) {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (near, far) = tokio::join!(
        connect(&address, LIMIT, congestion, None),
        listener.accept()
    );
    let (near, facts) = near.unwrap();
    (near, facts, far.unwrap().0)
}

#[tokio::test]
async fn facts_are_read_back_from_the_kernel() {
    let (near, facts_near, far) = connected(None).await;
    assert!(facts_near.nodelay && facts_near.loopback);
    assert!(facts_near.send_buffer_bytes > 0 && facts_near.recv_buffer_bytes > 0);
    assert_eq!(facts_near.peer, far.local_addr().unwrap());
    assert_eq!(facts_near, facts(&near).unwrap());
    assert!(
        !far.nodelay().unwrap(),
        "an accepted stream is set up by set_up"
    );
    assert!(set_up(&far, None).unwrap().nodelay);
    if cfg!(target_os = "linux") {
        assert_eq!(facts_near.congestion_control.as_deref(), Some("reno"));
        assert!(facts_near.mss_bytes.is_some_and(|bytes| bytes > 500));
    }
    let json = serde_json::to_value(&facts_near).unwrap();
    assert_eq!(json["nodelay"], true);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_congestion_control_that_does_not_exist_is_refused_by_name() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = connect(&address, LIMIT, Some("nonesuch"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, WireError::SocketOption(_)));
    assert!(error.to_string().contains("`nonesuch`"), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn tcp_info_counts_what_was_sent() {
    let (mut near, _, mut far) = connected(None).await;
    let before = tcp_info(&near).unwrap();
    near.write_all(&[1; 100_000]).await.unwrap();
    near.shutdown().await.unwrap();
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    let after = tcp_info(&far).unwrap();
    assert_eq!(before.bytes_sent, 0);
    // The kernel counts the FIN as a byte.
    assert!(
        (100_000..=100_001).contains(&after.bytes_received),
        "{after:?}"
    );
    assert!(before.pmtu_bytes > 500 && before.snd_cwnd_segments > 0);
}

#[tokio::test]
async fn nobody_there_names_the_command_to_start() {
    // Bound but not listening: nobody else can take the port, and connecting is refused.
    let idle = TcpSocket::new_v4().unwrap();
    idle.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = idle.local_addr().unwrap().port();
    let error = connect(&format!("127.0.0.1:{port}"), LIMIT, None, None)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no decode node answers at 127.0.0.1:{port} (connection refused): start one there with `disagg-bench serve-decode --listen 0.0.0.0:{port}`"
        )
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = bind(&address).await.unwrap_err().to_string();
    let port = listener.local_addr().unwrap().port();
    assert!(
        error.starts_with(&format!("port {port} is in use")),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_address_is_told_before_the_network_is_asked() {
    for address in ["localhost", ":7000", "host:", "host:70000", "host:port", ""] {
        let error = connect(address, LIMIT, None, None).await.unwrap_err();
        assert!(error.to_string().contains("give HOST:PORT"), "{error}");
        let error = bind(address).await.unwrap_err();
        assert!(matches!(error, WireError::Listen(_)));
    }
}

#[test]
fn loopback_is_told_in_both_families() {
    for (address, loopback) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("192.168.1.1:1", false),
        ("[fd00::1]:1", false),
    ] {
        assert_eq!(
            is_loopback(&address.parse().unwrap()),
            loopback,
            "{address}"
        );
    }
    let own = "192.168.1.1:5".parse().unwrap();
    assert!(stays_here(own, "192.168.1.1:6".parse().unwrap()));
    assert!(!stays_here(own, "192.168.1.2:6".parse().unwrap()));
}
