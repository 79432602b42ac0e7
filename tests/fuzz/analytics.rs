//! A query of `GET /analytics` is answered or refused; on SQLite as on the models in memory. A `Link` leads to older
//! points, and to an end.

use std::{sync::Arc, time::Duration};

use analytics::Layers;
use backend_master::{Dataset, Master, SqliteMaster};
use backend_views::{SqliteViews, Views};
use bytes::Bytes;
use domain::User;
use framework::router::Router;
use http::{Request, StatusCode, Uri, header::LINK};
use memory::{MemoryMaster, MemoryViews};
use serde_json::Value;

use crate::{
    engine::fuzz,
    runtime,
    stores::{Time, id},
};

/// Most bytes of an error: it does not repeat what was sent.
const LONGEST: usize = 2_000;
/// Most pages that are followed.
const PAGES: usize = 40;
/// Users in both layers.
const USERS: u64 = 150;

/// What an answer says, apart from the ids of points.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    longest: Value,
    points: Vec<(String, u64)>,
    link: Option<String>,
    fault: Option<String>,
}

async fn ask(router: &Router<Layers>, uri: &Uri) -> Answer {
    let request = Request::get(uri).body(Bytes::new()).unwrap();
    let answer = router.call(request).await;
    let body: Value = serde_json::from_slice(answer.body()).unwrap();
    let point =
        |point: &Value| (point["time"].as_str().unwrap().to_owned(), point["userCount"].as_u64().unwrap());
    Answer {
        status: answer.status(),
        longest: body["longestNameUser"].clone(),
        points: body["userCount"].as_array().into_iter().flatten().map(point).collect(),
        link: answer.headers().get(LINK).map(|link| link.to_str().unwrap().to_owned()),
        fault: body["detail"].as_str().map(str::to_owned),
    }
}

/// What both layers are read from.
type Stores = (Arc<dyn Views>, Arc<dyn Master>);

/// Both layers, with the same history over some hours, and views that forget.
async fn fill(time: &Time, stores: &[Stores]) {
    for n in 0..USERS {
        for (views, master) in stores {
            views.count(vec![id(n)]).await.unwrap();
            let name = "x".repeat(1 + (n * 7 % 31) as usize);
            Dataset::store(&**master, vec![User { id: id(n), name }]).await.unwrap();
            if n % 10 == 0 {
                master.tick(false).await.unwrap();
            }
        }
        time.advance([0, 200, 1_000, 45_000, 61_000, 600_000][(n * n % 6) as usize]);
    }
}

async fn check(input: &[u8], routers: &[Router<Layers>; 2]) -> String {
    let path = [&b"/analytics?"[..], input].concat();
    let Ok(uri) = Uri::try_from(path) else { return "no URI".to_owned() };
    let [sqlite, model] = routers;
    let answer = ask(sqlite, &uri).await;
    assert_eq!(answer, ask(model, &uri).await, "{uri}");
    match answer.status {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => {
            let fault = answer.fault.unwrap();
            assert!(fault.len() < LONGEST, "{} bytes of an error", fault.len());
            return fault;
        }
        other => panic!("{other} to {uri}"),
    }
    assert!(answer.points.is_sorted(), "oldest first");
    let (mut link, mut oldest, mut pages) = (answer.link, answer.points.first().cloned(), 1);
    while let Some(query) = link.take().filter(|_| pages < PAGES) {
        let query = query.strip_prefix("<?").and_then(|query| query.strip_suffix(">; rel=\"prev\"")).unwrap();
        let page = ask(model, &Uri::try_from(format!("/analytics?{query}")).unwrap()).await;
        assert_eq!(page.status, StatusCode::OK, "{query}");
        let newest = page.points.last().cloned();
        assert!(newest.is_none_or(|newest| Some(newest) < oldest), "{query} leads back");
        oldest = page.points.first().cloned().or(oldest);
        (link, pages) = (page.link, pages + 1);
    }
    format!("{} {}", "x".repeat(answer.points.len() / 10), "y".repeat(pages.min(9)))
}

#[test]
fn a_query_is_answered_or_refused_by_both_stores_alike() {
    let (runtime, folder, time) = (runtime(), tempfile::tempdir().unwrap(), Time::new());
    let retention = Duration::from_secs(3_600);
    let (clock, seconds) = (time.clock(), time.clock());
    let sqlite_views = SqliteViews::with_clock(folder.path().join("views.db"), retention, move || {
        seconds().div_euclid(1_000)
    });
    let sqlite_master = SqliteMaster::with_clock(folder.path().join("master.db"), move || clock());
    let sqlite: Stores = (Arc::new(sqlite_views), Arc::new(sqlite_master));
    let views = MemoryViews::new(time.clock(), retention);
    let model: Stores = (Arc::new(views), Arc::new(MemoryMaster::new(time.clock())));
    let stores = [sqlite, model];
    runtime.block_on(fill(&time, &stores));
    let routers = {
        let _guard = runtime.enter();
        stores.map(|(views, master)| analytics::routes(views, master))
    };
    fuzz("query", |input| runtime.block_on(check(input, &routers)));
}
