//! Which adapters there are, and which one is used.

use std::sync::{Mutex, OnceLock};

use burn::tensor::wgpu::{WgpuBackend as Api, wgpu};
use burn::tensor::{Device, DeviceKind};

use crate::GpuError;

/// What an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterKind {
    /// A card of its own.
    Discrete,
    /// Part of the processor.
    Integrated,
    /// Passed through to a virtual machine.
    Virtual,
    /// A driver that computes on the processor, such as Mesa's lavapipe.
    Software,
    /// What the driver does not say.
    Other,
}

impl core::fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            AdapterKind::Discrete => "discrete GPU",
            AdapterKind::Integrated => "integrated GPU",
            AdapterKind::Virtual => "virtual GPU",
            AdapterKind::Software => "software",
            AdapterKind::Other => "other",
        })
    }
}

/// An adapter of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver names it.
    pub name: String,
    /// What it is.
    pub kind: AdapterKind,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub api: String,
    /// The driver and its version, where it tells.
    pub driver: String,
    device: DeviceKind,
    pin: Api,
}

impl Adapter {
    /// Whether it computes on hardware of its own: a software adapter is slower than the `cpu` backend.
    pub fn is_gpu(&self) -> bool {
        self.kind != AdapterKind::Software
    }
}

impl core::fmt::Display for Adapter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({}, {}", self.name, self.kind, self.api)?;
        if !self.driver.is_empty() {
            write!(f, ", {}", self.driver)?;
        }
        f.write_str(")")
    }
}

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// A GPU if there is one, otherwise a software adapter.
    #[default]
    Best,
    /// A GPU; an error if there is none.
    Gpu,
    /// The software adapter.
    Software,
    /// The first whose name contains this text, in any case.
    Named(String),
}

/// The adapters of this machine, best first; asked once per process.
pub fn probe() -> &'static [Adapter] {
    static ADAPTERS: OnceLock<Vec<Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        // One API at a time: a card that two of them reach is one adapter, listed where it was found first.
        let apis = [
            (wgpu::Backend::Vulkan, Api::Vulkan),
            (wgpu::Backend::Metal, Api::Metal),
            (wgpu::Backend::Dx12, Api::Dx12),
        ];
        let mut found = Vec::new();
        for (backend, pin) in apis {
            let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
                backends: backend.into(),
                ..wgpu::InstanceDescriptor::new_without_display_handle()
            });
            let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend.into()));
            found.extend(list(adapters.iter().map(wgpu::Adapter::get_info), pin));
            if !found.is_empty() {
                break;
            }
        }
        found.sort_by_key(|a| match a.kind {
            AdapterKind::Discrete => 0,
            AdapterKind::Integrated => 1,
            AdapterKind::Virtual => 2,
            AdapterKind::Other => 3,
            AdapterKind::Software => 4,
        });
        found
    })
}

/// Numbers adapters the way the runtime addresses them: each kind from zero.
fn list(infos: impl Iterator<Item = wgpu::AdapterInfo>, pin: Api) -> Vec<Adapter> {
    let mut counts = [0usize; 3];
    let mut next = |kind: usize| {
        counts[kind] += 1;
        counts[kind] - 1
    };
    infos
        .map(|info| {
            let (kind, device) = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => (AdapterKind::Discrete, DeviceKind::DiscreteGpu(next(0))),
                wgpu::DeviceType::IntegratedGpu => (AdapterKind::Integrated, DeviceKind::IntegratedGpu(next(1))),
                wgpu::DeviceType::VirtualGpu => (AdapterKind::Virtual, DeviceKind::VirtualGpu(next(2))),
                wgpu::DeviceType::Cpu => (AdapterKind::Software, DeviceKind::Cpu),
                wgpu::DeviceType::Other => (AdapterKind::Other, DeviceKind::DefaultDevice),
            };
            let driver = [info.driver, info.driver_info].join(" ").trim().to_owned();
            Adapter { name: info.name, kind, api: format!("{:?}", info.backend), driver, device, pin }
        })
        .collect()
}

/// The adapter that `selection` means.
pub(crate) fn select(selection: &Selection) -> Result<&'static Adapter, GpuError> {
    let all = probe();
    let found = match selection {
        Selection::Best => all.first(),
        Selection::Gpu => all.iter().find(|a| a.is_gpu()),
        Selection::Software => all.iter().find(|a| !a.is_gpu()),
        Selection::Named(name) => {
            let name = name.to_lowercase();
            all.iter().find(|a| a.name.to_lowercase().contains(&name))
        }
    };
    found.ok_or_else(|| GpuError::NoAdapter {
        wanted: match selection {
            Selection::Best => "adapter".into(),
            Selection::Gpu => "GPU".into(),
            Selection::Software => "software adapter".into(),
            Selection::Named(name) => format!("adapter named {name:?}"),
        },
        found: match all {
            [] => "none".into(),
            all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        },
    })
}

/// The burn device of an adapter. A runtime can be set up only once per process, so devices are kept.
pub(crate) fn device(adapter: &Adapter) -> Result<Device, GpuError> {
    static DEVICES: Mutex<Vec<(DeviceKind, Device)>> = Mutex::new(Vec::new());
    let mut devices = DEVICES.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, device)) = devices.iter().find(|(kind, _)| *kind == adapter.device) {
        return Ok(device.clone());
    }
    let options = Device::wgpu_options().device_kind(adapter.device.clone()).graphics_api(adapter.pin);
    let device = options.init().map_err(|e| GpuError::Device(format!("{adapter} cannot be used: {e}")))?;
    devices.push((adapter.device.clone(), device.clone()));
    Ok(device)
}
