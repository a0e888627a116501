//! The recipes themselves, without root: what their texts promise is what the literal evaluator says.
#![allow(clippy::unwrap_used)] // tests

use super::{judge, recipe};

#[test]
fn the_texts_promise_what_the_evaluator_says() {
    let scratch = tempfile::tempdir().unwrap();
    let recipes = recipe::load(None).unwrap();
    assert!(recipes.len() >= 35, "{} recipes", recipes.len());
    let mut wrong = Vec::new();
    let mut said = [0, 0];
    for recipe in &recipes {
        let cluster = judge::cluster(recipe, scratch.path()).unwrap();
        assert!(
            recipe.expect.iter().any(|one| !one.allow) || recipe.expect.len() > 1,
            "{}",
            recipe.slug
        );
        for one in &recipe.expect {
            let (from, to) = (recipe.end(&one.from).unwrap().0, recipe.end(&one.to).unwrap().0);
            let verdict = judge::verdict(&cluster, from[0], to[0], one.service);
            said[usize::from(one.allow)] += 1;
            if verdict.allow() != one.allow {
                wrong.push(format!("{}: {one:?}: {verdict:?}", recipe.slug));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(said[0] > 40 && said[1] > 40, "{said:?}");
}

#[test]
fn a_folder_of_somebody_else_is_taken_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("db.yaml"),
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 3333}]}]}\n",
    )
    .unwrap();
    let recipes = recipe::load(Some(folder.path())).unwrap();
    let [recipe] = recipes.as_slice() else {
        unreachable!("one file, {} recipes", recipes.len())
    };
    assert_eq!(recipe.title, "db.yaml");
    assert!(recipe.pods.contains_key("shop/for-db"), "{:?}", recipe.pods);
    assert_eq!(recipe.ports, [ringwall_testbed::probe::Service::Tcp(3333)]);
    let scratch = tempfile::tempdir().unwrap();
    let cluster = judge::cluster(recipe, scratch.path()).unwrap();
    assert_eq!(cluster.policies.len(), 1);
    let subject = recipe.end("shop/for-db").unwrap().0[0];
    let client = recipe.end("default/client").unwrap().0[0];
    let allow = |port| {
        judge::verdict(
            &cluster,
            client,
            subject,
            ringwall_testbed::probe::Service::Tcp(port),
        )
        .allow()
    };
    assert!(allow(3333));
    assert!(!allow(80));
}

#[test]
fn what_is_wrong_with_a_folder_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        recipe::load(Some(folder.path()))
            .unwrap_err()
            .to_string()
            .contains("there is no .yaml")
    );
    std::fs::write(folder.path().join("a.yaml"), "kind: [").unwrap();
    let error = format!("{:#}", recipe::load(Some(folder.path())).unwrap_err());
    assert!(error.contains("a.yaml"), "{error}");
    let error = format!(
        "{:#}",
        recipe::load(Some(std::path::Path::new("/nowhere"))).unwrap_err()
    );
    assert!(error.contains("cannot read the folder /nowhere"), "{error}");
}
