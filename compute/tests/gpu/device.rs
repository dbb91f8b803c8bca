//! What becomes of adapters, memory and a lost device.

use super::gpu;
use pangea_compute::gguf::GgmlType;
use pangea_compute::gpu::{AdapterKind, Gpu, GpuBuffer, GpuChoice, GpuMatrix, GpuRows, Store, adapters};
use pangea_compute::{Error, ErrorKind};

#[test]
fn a_software_device_is_used_only_where_it_is_asked_for() {
    let Some(_) = gpu("a_software_device_is_used_only_where_it_is_asked_for") else { return };
    for adapter in adapters() {
        assert!(adapter.kind != AdapterKind::Software || adapter.unused_because.is_some(), "{adapter:?}");
        if adapter.kind == AdapterKind::Software {
            let named = Gpu::open(GpuChoice::Named(&adapter.name)).unwrap();
            assert_eq!(named.report().name, adapter.name);
        }
    }
    match Gpu::open(GpuChoice::Best) {
        Ok(gpu) => assert_ne!(gpu.report().kind, AdapterKind::Software),
        Err(why) => assert!(why.to_string().contains("it is software"), "{why}"),
    }
}

#[test]
fn an_adapter_that_does_not_exist_is_an_error_that_names_those_that_do() {
    let Some(gpu) = gpu("an_adapter_that_does_not_exist_is_an_error_that_names_those_that_do") else { return };
    let why = Gpu::open(GpuChoice::Named("no such card")).unwrap_err();
    assert_eq!(why.kind(), ErrorKind::InvalidInput);
    assert!(why.to_string().contains(&gpu.report().name), "{why}");
}

#[test]
fn more_memory_than_there_is_gives_an_error_and_the_device_still_works() {
    let Some(gpu) = gpu("more_memory_than_there_is_gives_an_error_and_the_device_still_works") else { return };
    let too_large = GpuBuffer::new(&gpu, gpu.max_binding_bytes() + 1, "a test");
    assert!(matches!(too_large, Err(Error::OutOfMemory { .. })), "{too_large:?}");
    let overflowing = GpuBuffer::new(&gpu, u64::MAX, "a test");
    assert!(matches!(overflowing, Err(Error::OutOfMemory { .. })), "{overflowing:?}");
    let buffer = GpuBuffer::of(&gpu, &[1u32, 2, 3], "a test").unwrap();
    let mut commands = gpu.commands();
    let slot = commands.read(&buffer, 0..4).unwrap();
    assert_eq!(commands.finish().unwrap().get::<u32>(slot), [1, 2, 3, 0]);
}

#[test]
fn what_lies_outside_of_a_buffer_is_an_error() {
    let Some(gpu) = gpu("what_lies_outside_of_a_buffer_is_an_error") else { return };
    let buffer = GpuBuffer::new(&gpu, 16, "a test").unwrap();
    assert!(buffer.write(&gpu, 12, &[0; 5]).is_err());
    assert!(buffer.write(&gpu, 2, &[0; 4]).is_err());
    assert!(buffer.write(&gpu, u64::MAX - 3, &[0; 8]).is_err());
    buffer.write(&gpu, 8, &[1, 2, 3, 4, 5]).unwrap();
    let mut commands = gpu.commands();
    assert!(commands.read(&buffer, 1..5).is_err());
    assert!(commands.copy(&buffer, 0, &buffer, 3, 2).is_err());
    let slot = commands.read(&buffer, 2..4).unwrap();
    assert_eq!(commands.finish().unwrap().get::<u8>(slot), [1, 2, 3, 4, 5, 0, 0, 0]);
    let rows = GpuRows::of(&gpu, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "a test").unwrap();
    let copies = GpuRows::new(&gpu, 3, 3, "a test").unwrap();
    let mut commands = gpu.commands();
    commands.copy_rows(&rows, 1, &copies, 2, 1).unwrap();
    assert!(commands.copy_rows(&rows, 1, &copies, 1, 2).is_err());
    let slot = copies.read(&mut commands, 1..3).unwrap();
    assert_eq!(copies.elements(&commands.finish().unwrap(), slot), [0.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
    assert!(rows.write(&gpu, 0, &[0.0; 4]).is_err());
    assert!(rows.write(&gpu, 1, &[0.0; 6]).is_err());
}

#[test]
fn a_lost_device_is_an_error_that_allows_another_try_and_never_a_panic() {
    // A device of its own: the others share one.
    let Some(shared) = gpu("a_lost_device_is_an_error_that_allows_another_try_and_never_a_panic") else { return };
    let name = shared.report().name.clone();
    let gpu = Gpu::open_alone(GpuChoice::Named(&name)).unwrap();
    let w = GpuMatrix::of_bytes(&gpu, GgmlType::F32, 4, 4, &[0; 64]).unwrap();
    let x = GpuRows::of(&gpu, 4, &[1.0; 4], "a test").unwrap();
    let y = GpuRows::new(&gpu, 1, 4, "a test").unwrap();
    let mut commands = gpu.commands();
    commands.product(&w, &x, &y, 1, Store::default()).unwrap();
    y.read(&mut commands, 0..1).unwrap();
    gpu.lose();
    let lost = |e: Error| {
        assert!(matches!(e, Error::DeviceLost { .. }), "{e:?}");
        assert_eq!(e.kind(), ErrorKind::Unavailable);
    };
    lost(commands.finish().map(|_| ()).unwrap_err());
    lost(gpu.check().unwrap_err());
    lost(GpuBuffer::new(&gpu, 16, "a test").map(|_| ()).unwrap_err());
    lost(x.write(&gpu, 0, &[1.0; 4]).unwrap_err());
    let mut again = gpu.commands();
    lost(
        again
            .product(&w, &x, &y, 1, Store { add: true, ..Store::default() })
            .and_then(|()| again.finish())
            .map(|_| ())
            .unwrap_err(),
    );
    // Another device of the same adapter works.
    shared.check().unwrap();
    Gpu::open(GpuChoice::Named(&name)).unwrap().check().unwrap();
}

#[test]
fn threads_that_wait_for_one_device_each_get_their_own_results() {
    let Some(gpu) = gpu("threads_that_wait_for_one_device_each_get_their_own_results") else { return };
    let rounds = &|number: u32| {
        let buffer = GpuBuffer::of(&gpu, &[number; 4], "a test").unwrap();
        for _ in 0..4000 {
            let mut commands = gpu.commands();
            let slot = commands.read(&buffer, 0..4).unwrap();
            assert_eq!(commands.finish().unwrap().get::<u32>(slot), [number; 4]);
        }
    };
    std::thread::scope(|scope| {
        (0..8).for_each(|number| {
            scope.spawn(move || rounds(number));
        });
    });
}
