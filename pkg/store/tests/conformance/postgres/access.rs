//! Who may come in, and how the server is known: TLS, passwords and the file that has them, certificates, a user who may little.

use super::server::Cluster;
use isopod_base::errors::Chain;
use isopod_store::postgres::{PostgresOptions, PostgresStore};
use isopod_store::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const CHILD: &str = "ISOPOD_TEST_POSTGRES_URL";

fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let status = command.args(args.split(' ')).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("openssl: see hack/deps.sh test").success(), "openssl {args}");
}

/// Two authorities, and of the first a server's and a client's certificate.
fn certificates(dir: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for ca in ["ca", "other"] {
        openssl(dir, &format!("req -x509 {key} -keyout {ca}.key -out {ca}.crt -days 2 -subj /CN={ca}"));
    }
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for name in ["server", "certified"] {
        openssl(dir, &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san";
        openssl(dir, &format!("x509 -req -in {name}.csr {sign} -out {name}.crt"));
    }
}

async fn works(options: PostgresOptions) -> Result<()> {
    let store = PostgresStore::open(options, Options::default()).await?;
    store.txn(Txn { success: vec![Op::put("a", "1")], ..Default::default() }).await?;
    store.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_come_in() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let cluster = Cluster::start("");
    cluster.adopt(keys.path(), &["ca.crt", "server.crt", "server.key"]);
    cluster.configure(
        &format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\nssl_ca_file = 'ca.crt'\n\
             ssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\n"
        ),
        "local all all trust\nhostssl all secured 127.0.0.1/32 scram-sha-256\nhostssl all certified 127.0.0.1/32 cert\n",
    );
    let mut admin = super::connect(&cluster).await;
    let roles = "SET password_encryption = 'scram-sha-256'; CREATE ROLE secured LOGIN PASSWORD 'gehe:im/1'; \
                 CREATE ROLE certified LOGIN; GRANT CREATE ON DATABASE postgres TO secured, certified; \
                 REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; \
                 GRANT EXECUTE ON FUNCTION pg_control_system() TO secured";
    sqlx::raw_sql(roles).execute(&mut admin).await.unwrap();
    drop(admin);
    cluster.restart();

    let file = |name: &str| Some(keys.path().join(name));
    let place = |user: &str, schema: &str| PostgresOptions {
        ca_file: file("ca.crt"),
        schema: schema.into(),
        ..PostgresOptions::new(format!("postgres://{user}@127.0.0.1:{port}/postgres"))
    };
    works(place("secured:gehe%3Aim%2F1", "secured")).await.unwrap();
    // Without the right to ask for the timeline too.
    let certified = PostgresOptions {
        cert_file: file("certified.crt"),
        key_file: file("certified.key"),
        ..place("certified", "certified")
    };
    works(certified).await.unwrap();

    let wrong_ca = PostgresOptions { ca_file: file("other.crt"), ..place("secured:gehe%3Aim%2F1", "secured") };
    let mut plain = place("secured:gehe%3Aim%2F1", "secured");
    plain.url += "?sslmode=disable";
    let refused = [
        ("wrong password", place("secured:gehe", "secured"), "password authentication failed"),
        ("another authority", wrong_ca, "certificate"),
        ("no TLS", plain, "no pg_hba.conf entry"),
        ("no certificate", place("certified", "certified"), "certificate"),
        (
            "another one's schema",
            PostgresOptions { schema: "certified".into(), ..place("secured:gehe%3Aim%2F1", "") },
            "another user's",
        ),
    ];
    for (what, options, want) in refused {
        let error = works(options).await.expect_err(what);
        let text = Chain(&error).to_string();
        assert!(matches!(error, StoreError::Backend { .. }), "{what}: {error:?}");
        assert!(text.contains(want) && !text.contains("gehe"), "{what}: {text}");
    }

    let passwords = keys.path().join("passwords");
    std::fs::write(&passwords, format!("127.0.0.1:{port}:*:secured:gehe\\:im/1\n")).unwrap();
    std::fs::set_permissions(&passwords, PermissionsExt::from_mode(0o600)).unwrap();
    let url = format!("postgres://secured@127.0.0.1:{port}/postgres?sslmode=require");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "postgres::access::comes_in", "--ignored"]).env(CHILD, url).env("PGPASSFILE", passwords);
    assert!(child.stdout(Stdio::null()).status().unwrap().success(), "with a file of passwords");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of who_may_come_in, with an environment of its own"]
async fn comes_in() {
    let url = std::env::var(CHILD).expect("started by another test");
    works(PostgresOptions { schema: "secured".into(), ..PostgresOptions::new(url) }).await.unwrap();
}
