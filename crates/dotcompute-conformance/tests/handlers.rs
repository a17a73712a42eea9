//! What a handler is promised, on the executors of this program: on asyncio's pytest asks for it, on
//! `cuda` that crate's tests do.

mod on_async {
    use dotcompute::Runtime;
    use dotcompute_conformance::Place;
    use dotcompute_conformance::handlers::HandlerFixture;

    dotcompute_conformance::handler_suite!(HandlerFixture {
        executor: "async",
        builder: Runtime::builder,
        in_hand_max: 1,
        launch: |builder| Place::Here.launch_drill(builder),
    });
}

mod on_thread {
    use dotcompute::Runtime;
    use dotcompute_conformance::Place;
    use dotcompute_conformance::handlers::HandlerFixture;

    dotcompute_conformance::handler_suite!(HandlerFixture {
        executor: "thread",
        builder: Runtime::builder,
        in_hand_max: 1,
        launch: |builder| Place::Here.launch_drill(builder),
    });
}
